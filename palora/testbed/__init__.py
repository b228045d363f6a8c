"""The small world and the small model: synthetic skills, invented biographies, a Llama that knows them."""

from pathlib import Path

from palora.front.recipe import Recipe, load_recipe

HERE = Path(__file__).parent


def demo_recipe(seed: int = 0) -> Recipe:
    """The recipe of `palora demo`, on the model and the facts shipped beside this file."""
    return load_recipe(HERE / "demo.yaml", [f"seed={seed}"])
