"""Ports for servers under test: nobody else gets them between the answer and the server's start."""

from __future__ import annotations

import socket
import subprocess
import sys

from talkoo_sim.ports import RANGE_FILE, free_port, free_ports


def test_no_port_is_given_twice() -> None:
    given = [*free_ports(200), *(free_port() for _ in range(200))]
    assert len(set(given)) == 400


def test_no_port_is_one_that_a_connection_may_take() -> None:
    first = int(RANGE_FILE.read_text().split()[0])
    assert max(free_ports(50)) < first


def test_a_port_somebody_listens_on_is_passed_over() -> None:
    here = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", here + 1))
        assert free_port() != here + 1


def test_a_port_is_one_process_s_until_that_ends() -> None:
    begun = free_port()
    code = f"from talkoo_sim import ports; ports._next = {begun} - ports.FIRST_PORT; print(ports.free_port())"

    def other() -> int:
        return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)

    next_one = other()

    assert next_one > begun, "ours is not given again, though nobody listens there"
    assert other() == next_one, "what belonged to a process that ended is free"
