"""What a node shows of itself over HTTP: metrics, health, readiness.

    status.py       what the slots say, as words: ready or not and why, what each worker does
    collectors.py   what the slots and the leader's statistics say, as numbers for /metrics
    app.py          the routes

The process that serves it, and the socket, belong to `processes/web.py`.
"""
