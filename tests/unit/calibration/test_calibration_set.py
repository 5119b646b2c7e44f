import torch

from faqbench.calibration import draw, load_calibration_set, save_calibration_set


def test_a_set_comes_back_from_disk_as_it_was(toy, tokenizer, request_for, tmp_path):
    parts = [(toy(domain="a"), 0.5), (toy([f"b number {i}, a text" for i in range(9)], "b"), 0.5)]
    calibration = draw(parts, tokenizer, request_for())
    save_calibration_set(calibration, tmp_path)
    again = load_calibration_set(tmp_path)
    assert torch.equal(again.tokens, calibration.tokens)
    one, other = vars(calibration) | {"tokens": None}, vars(again) | {"tokens": None}
    assert one == other
