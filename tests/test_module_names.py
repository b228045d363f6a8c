"""What the name of a matrix says."""

from palora.common.module_names import by_depth, module_label, split_module


def test_modules_are_sorted_by_depth() -> None:
    names = ["model.layers.10.mlp.up_proj", "model.layers.2.mlp.up_proj", "lm_head"]
    assert by_depth(names) == ["lm_head", "model.layers.2.mlp.up_proj", "model.layers.10.mlp.up_proj"]
    assert module_label("transformer.h.3.mlp.c_fc") == "layer 3 · c_fc"
    assert split_module("lm_head") == (None, "lm_head")
