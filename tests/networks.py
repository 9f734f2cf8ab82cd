"""Hosts on one machine: network namespaces that a switch joins, with cables that can be cut."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any


class Network:
    """A switch and its hosts, numbered from 1; host N has the address 10.77.0.N and no way out."""

    def __init__(self, num_hosts: int) -> None:
        self._name = f"st{uuid.uuid4().hex[:6]}"
        self._num_hosts = num_hosts
        self._processes: list[subprocess.Popen[Any]] = []

    def build(self) -> None:
        """Raises subprocess.CalledProcessError where this kernel or container does not let us."""
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "br0", "up")
        for number in range(1, self._num_hosts + 1):
            host = self._host(number)
            _ip("netns", "add", host)
            _ip("-n", host, "link", "set", "lo", "up")
            _ip("-n", self._switch, "link", "add", f"v{number}", "type", "veth", "peer", "name", "e0", "netns", host)
            _ip("-n", self._switch, "link", "set", f"v{number}", "master", "br0")
            _ip("-n", self._switch, "link", "set", f"v{number}", "up")
            _ip("-n", host, "addr", "add", f"{self.address(number)}/24", "dev", "e0")
            _ip("-n", host, "link", "set", "e0", "up")

    def remove(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for name in (*map(self._host, range(1, self._num_hosts + 1)), self._switch):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    @staticmethod
    def address(number: int) -> str:
        return f"10.77.0.{number}"

    @property
    def _switch(self) -> str:
        return f"{self._name}-0"

    def _host(self, number: int) -> str:
        return f"{self._name}-{number}"

    def cut(self, number: int) -> None:
        """Pull the cable: nobody is told."""
        _ip("-n", self._switch, "link", "set", f"v{number}", "down")

    def plug_in(self, number: int) -> None:
        _ip("-n", self._switch, "link", "set", f"v{number}", "up")

    def run(
        self, number: int, *command: str, env: Mapping[str, str], timeout_s: float = 240
    ) -> subprocess.CompletedProcess[str]:
        """A command on a host, to its end."""
        return subprocess.run(
            self._on(number, command), env=dict(env), capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def start(self, number: int, *command: str, env: Mapping[str, str], **options: Any) -> subprocess.Popen[Any]:
        """A process on a host, which ends with the network."""
        process = subprocess.Popen(self._on(number, command), env=dict(env), **options)
        self._processes.append(process)
        return process

    def _on(self, number: int, command: tuple[str, ...]) -> list[str]:
        return ["ip", "netns", "exec", self._host(number), *command]


@contextmanager
def network(num_hosts: int) -> Iterator[Network]:
    made = Network(num_hosts)
    try:
        made.build()
        yield made
    finally:
        made.remove()


@cache
def why_no_networks() -> str | None:
    """Why this machine has no namespaces for us; None where it has."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "no ip here: Debian's package iproute2"
    try:
        with network(1):
            return None
    except subprocess.CalledProcessError as error:
        return f"no network namespaces here: {error.stderr.strip()}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=20)
