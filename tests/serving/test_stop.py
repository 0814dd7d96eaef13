"""A service is told to end, whichever of its threads the system tells it."""

import subprocess
import sys

CODE = """
import signal, threading, time
from serving.stop import Stop

def tell():
    # As the system does at times: the signal goes to a thread that is not the main one.
    time.sleep(0.3)
    for _ in range(2):
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

stop = Stop()
threading.Thread(target=tell).start()
stop.wait()
print(stop.asked)
"""


def test_a_signal_that_another_thread_is_given_ends_the_wait() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_a_second_one_ends_everything_although_the_first_has_only_been_heard() -> None:
    code = CODE.replace("for _ in range(2):", "for pause in (0, 1):\n        time.sleep(pause)")
    code += "Stop.wait_for(lambda: False, 30)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (128 + 15, "")
