"""Small scripts that run another tool, each in the tool's own virtual environment.

faqbench calls `python DRIVER.py REQUEST.json`, from an environment that has the packages of the recipe
(`quant.external.requirements`) and not faqbench. A driver imports nothing of this package. It is told

    model        folder of the full precision model
    tokens       safetensors file, `tokens` int64 [n_windows, seq_len]: the calibration set
    into         empty folder, for config.json and safetensors
    bits, group_size (-1 is one group per row), symmetric, seed
    options      of the recipe

and writes a checkpoint that `faqbench.layouts` reads. To add a tool: a script here, or anywhere, and a
recipe as those in `conf/quant/external/`.
"""
