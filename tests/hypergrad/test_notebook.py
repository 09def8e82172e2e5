"""An interrupted cell of a notebook keeps what it has, and a second interrupt ends it at once."""

import time

import pytest

pytest.importorskip("ipykernel")
manager = pytest.importorskip("jupyter_client.manager")

PREPARE = """
import time
import jax
import optax
import hypergrad as hg
from hypergrad.testing.problems import ridge

case = ridge()
search = hg.GradientSearch(hg.Greedy(hg.OptaxSolver(optax.sgd(0.1), 1)), optax.sgd(0.1))
state = search.init(case.problem, case.params, case.hparams)
space = hg.trials.Space({"x": hg.trials.Float(0.0, 1.0)})

def pause(*_):
    time.sleep(0.05)

def slow(trial, key):
    print("trains", flush=True)
    time.sleep(0.2)
    return trial.params["x"]

def never(*_):
    print("waits", flush=True)
    begun = time.monotonic()
    while time.monotonic() < begun + 60:
        pass  # in Python, but not back in the loop
"""
RUN = (
    "print('begins', flush=True)\nhg.run(search, case.problem, state, key=jax.random.key(0), budget=10**9, callback={})"
)
TRIALS = "hg.trials.search_trials(hg.trials.Random(), space, slow, key=jax.random.key(0), num_trials=10**6)"


class Notebook:
    def __init__(self):
        self.manager, self.client = manager.start_new_kernel(kernel_name="python3")

    def begin(self, code):
        self.asked = self.client.execute(code)

    def wait(self, word):
        """Reads what the cell prints until the word comes."""
        while True:
            message = self.client.get_iopub_msg(timeout=60)
            if message["msg_type"] == "stream" and word in message["content"]["text"]:
                return

    def end(self):
        """The name of the error that the cell ended with, once the kernel is idle again."""
        while True:  # a kernel that was slow to start has been asked several times whether it is ready
            reply = self.client.get_shell_msg(timeout=60)
            if reply["parent_header"]["msg_id"] == self.asked:
                return reply["content"].get("ename")

    def value(self, expression):
        """Returns the text that an expression prints."""
        self.begin(f"print('>', {expression}, flush=True)")
        while True:
            message = self.client.get_iopub_msg(timeout=60)
            if message["msg_type"] == "stream" and message["content"]["text"].startswith("> "):
                self.end()
                return message["content"]["text"][2:].strip()


@pytest.fixture(scope="module")
def notebook():
    found = Notebook()
    found.begin(PREPARE)
    assert found.end() is None
    yield found
    found.client.stop_channels()
    found.manager.shutdown_kernel(now=True)


@pytest.mark.slow
@pytest.mark.row(40)
def test_an_interrupted_run_is_in_last_value(notebook):
    notebook.begin(RUN.format("pause"))
    notebook.wait("begins")
    time.sleep(3.0)
    notebook.manager.interrupt_kernel()
    assert notebook.end() == "KeyboardInterrupt"
    steps = "__import__('sys').last_value"
    assert notebook.value(f"int({steps}.state.num_steps) == len({steps}.history) > 0") == "True"


@pytest.mark.slow
@pytest.mark.row(40)
def test_interrupted_trials_are_in_last_value(notebook):
    notebook.begin(TRIALS)
    notebook.wait("trains")
    time.sleep(1.0)
    notebook.manager.interrupt_kernel()
    assert notebook.end() == "KeyboardInterrupt"
    assert int(notebook.value("len(__import__('sys').last_value.state.history)")) >= 1


@pytest.mark.slow
@pytest.mark.row(40)
def test_a_second_interrupt_ends_at_once(notebook):
    notebook.begin(RUN.format("never"))
    notebook.wait("waits")
    notebook.manager.interrupt_kernel()
    time.sleep(0.5)
    begun = time.monotonic()
    notebook.manager.interrupt_kernel()
    assert notebook.end() == "KeyboardInterrupt" and time.monotonic() - begun < 10
