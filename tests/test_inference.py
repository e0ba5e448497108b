"""Two threads in exact inference at once: neither takes from the other what it set, and both leave things as found."""

import threading

import pytest
import torch
from torch import nn

from jepa_tok.inference import exact_inference
from jepa_tok.tokenizer import SpeechTokenizer


class Visitor(threading.Thread):
    """A thread that enters exact inference on `module`, waits to be told, and leaves."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(daemon=True)
        self.module, self.inside, self.leave = module, threading.Event(), threading.Event()
        self.start()
        assert self.inside.wait(60)

    def run(self) -> None:
        with exact_inference(self.module, torch.device("cpu")):
            self.inside.set()
            self.leave.wait(60)

    def gone(self) -> None:
        self.leave.set()
        self.join(60)


def settings(module: nn.Module) -> tuple:
    backends = torch.backends
    return (
        [m.training for m in module.modules()],
        backends.cuda.matmul.fp32_precision,
        backends.cudnn.conv.fp32_precision,
        torch.get_default_dtype(),
    )


@pytest.fixture
def module():
    """Half in training, with PyTorch's process-wide settings other than ours."""
    made = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).eval()
    made[1].train()
    before, conv = torch.get_default_dtype(), torch.backends.cudnn.conv.fp32_precision
    torch.set_default_dtype(torch.float64)
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    yield made
    torch.set_default_dtype(before)
    torch.backends.cudnn.conv.fp32_precision = conv


@pytest.mark.parametrize("first_out", [0, 1])
def test_the_last_to_leave_puts_settings_back(module, first_out):
    found = settings(module)
    assert found[2] == "tf32" and found[3] == torch.float64 and found[0] == [False, False, True]
    visitors = [Visitor(module), Visitor(module)]
    inside = ([False] * 3, "ieee", "ieee", torch.float32)
    assert settings(module) == inside
    visitors[first_out].gone()
    assert settings(module) == inside
    visitors[1 - first_out].gone()
    assert settings(module) == found


def test_modules_of_two_models_are_counted_one_by_one(module):
    # Tokenizers made by `from_modules` share theirs.
    other = nn.ModuleList([module[1], nn.Linear(2, 2)]).train()
    first, second = Visitor(module), Visitor(other)
    first.gone()
    assert not module[1].training and not other[1].training
    second.gone()
    assert module[1].training and other[1].training and not module[0].training


def test_an_error_leaves_settings_as_found(module):
    found = settings(module)
    with pytest.raises(ZeroDivisionError), exact_inference(module, torch.device("cpu")):
        raise ZeroDivisionError
    assert settings(module) == found


def test_a_model_made_while_another_thread_encodes_is_float32_and_the_default_is_put_back(module):
    visitor = Visitor(module)
    made = SpeechTokenizer.from_config("small")
    assert made.dtype == torch.float32 and torch.get_default_dtype() == torch.float32
    visitor.gone()
    assert torch.get_default_dtype() == torch.float64
