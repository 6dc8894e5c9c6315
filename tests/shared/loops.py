"""What is done to a training loop under test, and what it leaves."""

import json
import signal


def signal_in_step(loop, number, what):
    """Have this process receive a signal in the middle of a step, counted from 1."""
    calls = []

    def receive(gradient):
        calls.append(gradient)
        if len(calls) == number:
            signal.raise_signal(what)

    loop.session.models.agent.from_prompt.weight.register_hook(receive)


def read_steps(folder):
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def read_metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def spoil_steps(session, steps, value):
    """In these steps, counted from 1, a gradient of the agent's is not finite."""
    calls = []

    def spoil(gradient):
        calls.append(gradient)
        return gradient * value if len(calls) in steps else gradient

    return session.models.agent.from_prompt.weight.register_hook(spoil)
