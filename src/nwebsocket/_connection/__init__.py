"""One connection's life: it opens, messages go in and out, handlers are called, it ends, it comes back.

    USER THREADS                       LOOP THREAD: one curio kernel
    websocket ──commands──> bridge ──> session ──> protocol ──bytes──> transport ──> server
         │              (UniversalQueue)           (wsproto)          (TCP, TLS)
         └───messages────────> writer ──> framing ──frames───────────> transport ──> server       (on either thread)
    CALLBACK THREADS
    callbacks <──events──── bridge <── intake <── protocol <──bytes── transport <── server
         ^                                       (fast_lane)
         └───messages─────── bridge <── reader <───────────────────── transport <── server
    WHO WAITS for a message

How a connection is opened, on the loop thread:

    session ──> opening ──> tcp ──> server           by name or address, or a Unix socket; then TLS
                   ├──────> tunnel ──> proxy ──> server
                   └──────> protocol, handshake      request and answer; cookies; redirects
"""
