"""From a run to a checkpoint that other tools load, proven equal to what was measured.

    fold.py                 the measured model as tensors: codes, and what the channel scales fold into;
                            safetensors files of a bounded size
    compressed_tensors.py   one file per kind of layout: what it holds, how codes lie in it, and what
    words.py                its loader wants to be told; whatever it cannot hold is refused with the
    gguf_file.py            nearest configuration that it can
    evidence.py             what a verification compares with: tokens, logits, losses, weights' hashes
    writing.py              all of it into one folder, or nothing: read this first
    plain.py                the verification itself, in a process without any modelling code of ours

Nothing is quantized here: codes, scales and zero points are those of the run's cached stage.
"""
