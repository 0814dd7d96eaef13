"""A thread that proves itself before it works."""

import threading
from collections.abc import Callable
from concurrent.futures import Future


def proven_thread(name: str, prove: Callable[[], object], work: Callable[[], None]) -> threading.Thread:
    """A daemon thread that calls ``prove``, and then ``work``; what ``prove`` raises, this raises.

    On a GPU each thread has buffers and recorded steps of its own: those that serve must be those that are proven.
    """
    proven: Future[object] = Future()

    def run() -> None:
        try:
            proven.set_result(prove())
        except BaseException as failure:
            proven.set_exception(failure)
        else:
            work()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    proven.result()
    return thread
