"""The loop thread, curio made safe, and how a thread waits for a lock. It knows no WebSocket."""
