"""Answers every datagram with the time and where it was told. Needs nothing but Python 3.6."""

import os
import socket
import time

server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((os.environ.get("HOST", "127.0.0.1"), int(os.environ["PORT"])))
where = "replica {} on {}".format(
    os.environ.get("DUGNAD_REPLICA", "?"), os.environ.get("DUGNAD_NODE", "?")
)
while True:
    _, client = server.recvfrom(2048)
    server.sendto("{} {}\n".format(time.strftime("%H:%M:%S"), where).encode(), client)
