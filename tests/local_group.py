"""Two processes that do the same jobs together, for the tests of candidates that are shared by processes."""

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from local_patience import PATIENCE

from objectives.runtime.distributed import Group, free_port, join_group, leave_group

SIZE = 2
Job = Callable[..., Any]  # called with the group, and arguments


class Pair:
    """Starts the processes at the first job, and again those that have died."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._members: list[tuple[BaseProcess, Connection]] = []

    def run(self, job: Job, *arguments: Any, timeout: float = 60.0) -> list[Any]:
        """What the job returned, or the exception that it raised, in every process; None of one that died."""
        self._members = [self._members[rank] if self._alive(rank) else self._start() for rank in range(SIZE)]
        port = free_port()
        for rank, (_, pipe) in enumerate(self._members):
            pipe.send((job, rank, port, timeout, arguments))
        return [self._answer(*member) for member in self._members]

    def close(self) -> None:
        for process, _ in self._members:
            process.kill()
            process.join()

    def _alive(self, rank: int) -> bool:
        return rank < len(self._members) and self._members[rank][0].is_alive()

    def _start(self) -> tuple[BaseProcess, Connection]:
        here, there = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(there,), daemon=True)
        process.start()
        there.close()
        return process, here

    @staticmethod
    def _answer(process: BaseProcess, pipe: Connection) -> Any:
        ready = wait([pipe, process.sentinel], PATIENCE)
        assert ready, "a process neither answers nor ends"
        if pipe not in ready:
            process.join()
            return None
        try:
            return pipe.recv()
        except EOFError:
            process.join()
            return None


def _serve(pipe: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        job, rank, port, timeout, arguments = pipe.recv()
        try:
            answer = job(join_group(rank, SIZE, "127.0.0.1", port, torch.device("cpu"), timeout), *arguments)
        except Exception as error:
            error.add_note(traceback.format_exc())
            answer = error
        leave_group()
        pipe.send(answer)


def group_of(rank: int) -> Group:
    return Group(rank=rank, size=SIZE)
