"""Bytes to messages and back, sans I/O: no socket, no thread, no clock. The only room with wsproto."""
