// A server of Node's package ws.
//
//     node node_ws.js NODE_MODULES PORT
//
//     /           echo; the first sub-protocol is accepted
//     /close      closes with 4001 and "enough" after the first message
//     /closes     sends the next close code and reason that / hears of, if it has a reason
//     /fragments  sends "fragment" thrice as one message with pings in between, and "pong" for each of their pongs
"use strict";

const [modules, port] = process.argv.slice(2);
const { WebSocketServer } = require(`${modules}/ws`);

const heard = [];
const listeners = [];

function matchHeard() {
    while (heard.length && listeners.length) listeners.shift().send(heard.shift());
}

const paths = {
    "/"(socket) {
        socket.on("message", (data, binary) => socket.send(data, { binary }));
        socket.on("close", (code, reason) => {
            if (reason.length) heard.push(`${code} ${reason}`);
            matchHeard();
        });
    },
    "/close"(socket) {
        socket.on("message", () => socket.close(4001, "enough"));
    },
    "/closes"(socket) {
        listeners.push(socket);
        matchHeard();
    },
    "/fragments"(socket) {
        socket.on("pong", (data) => socket.send(`pong ${data}`));
        for (const number of [1, 2, 3]) {
            socket.send("fragment", { fin: number === 3 });
            if (number < 3) socket.ping(String(number));
        }
    },
};

const perMessageDeflate = { threshold: 0 };
const server = new WebSocketServer({ host: "127.0.0.1", port: Number(port), perMessageDeflate });
server.on("connection", (socket, request) => paths[request.url](socket));
