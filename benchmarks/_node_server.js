// The echo server of Node's package ws, with the default options of its server or those of perMessageDeflate: true.
//
//     node _node_server.js NODE_MODULES [deflate]    prints its port as JSON; ends when its standard input does
"use strict";

const [modules, deflate] = process.argv.slice(2);
const { WebSocketServer } = require(`${modules}/ws`);
const { version } = require(`${modules}/ws/package.json`);

const options = deflate ? { perMessageDeflate: true } : {};
const server = new WebSocketServer({ host: "127.0.0.1", port: 0, ...options });
server.on("connection", (socket) => socket.on("message", (data, binary) => socket.send(data, { binary })));
server.on("listening", () => {
    const about = `ws ${version}, Node ${process.version}`;
    console.log(JSON.stringify({ ports: [server.address().port], about, ca: "" }));
});
process.on("SIGINT", () => {});
process.stdin.on("end", () => process.exit()).resume();
