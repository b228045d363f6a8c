"""An adapter on the Hub, with a stand-in for it: what is asked before any work, and what is sent."""

import json
from types import SimpleNamespace

import huggingface_hub
import pytest
from command import palora
from huggingface_hub import RepoCard
from huggingface_hub.errors import LocalTokenNotFoundError

from palora.common.errors import InputError
from palora.results.hub import check_push
from palora.results.model_card import licence_of, model_card, vllm_rank

USER = {"name": "ada", "orgs": [{"name": "society"}], "auth": {"accessToken": {"role": "write"}}}


@pytest.fixture
def hub(monkeypatch):
    """The Hub: whom it takes us for, what was made and what arrived there."""
    seen = SimpleNamespace(user=USER, made=[], files={}, fails=None)

    class Api:
        def whoami(self):
            if isinstance(seen.user, Exception):
                raise seen.user
            return seen.user

        def create_repo(self, repo, private, exist_ok):
            seen.made.append((repo, private))

        def upload_folder(self, repo_id, folder_path, allow_patterns, commit_message):
            if seen.fails:
                raise seen.fails
            from pathlib import Path

            seen.files = {f.name: f.read_bytes() for f in Path(folder_path).iterdir() if f.name in allow_patterns}
            return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/1")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return seen


def test_what_is_sent_is_said_and_is_no_more(made, tmp_path, hub, caplog):
    done = palora("export", "--adapter", made.adapter, "--out", tmp_path / "out", "--push-to-hub", "facts")
    assert done.code == 0 and hub.made == [("ada/facts", True)], "private by default"
    sent = ["README.md", "adapter_config.json", "adapter_model.safetensors", "palora.json"]
    assert sorted(hub.files) == sent and all(name in caplog.text for name in sent)
    assert "Uploaded: https://huggingface.co/ada/facts/commit/1" in done.err
    everything = b"".join(hub.files.values())
    assert str(made.run.parent).encode() not in everything and str(made.model).encode() not in everything
    assert hub.files["adapter_model.safetensors"] == (made.adapter / "adapter_model.safetensors").read_bytes()
    assert json.loads(hub.files["adapter_config.json"])["base_model_name_or_path"] in ("model", made.model.name)
    palora("export", "--adapter", made.adapter, "--out", tmp_path / "out", "--push-to-hub", "society/x", "--public")
    assert hub.made[-1] == ("society/x", False)


@pytest.mark.parametrize(
    ("user", "name", "said"),
    [
        (USER, "a b", "no name of a repository"),
        (USER, "other/facts", "ada is not other"),
        (LocalTokenNotFoundError("x"), "facts", "needs a token of the Hub: hf auth login"),
        (ConnectionError("no route\nto host"), "facts", r"does not let us in \(no route\)"),
        (USER | {"auth": {"accessToken": {"role": "read"}}}, "facts", "the token can only read"),
    ],
)
def test_what_cannot_be_sent_is_told_before_any_training(made, tmp_path, hub, user, name, said):
    hub.user = user
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"model: {made.model}\nskills: [chain]\nfacts: {made.facts}\n")
    done = palora("run", recipe, "--out", tmp_path / "run", "--push-to-hub", name)
    assert done.code == 2 and len(done.complaints) == 1 and not (tmp_path / "run").exists() and not hub.made
    with pytest.raises(InputError, match=said):
        check_push(name)


def test_offline_it_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        check_push("facts")


def test_an_upload_that_fails_leaves_the_adapter_and_says_how_to_go_on(made, tmp_path, hub):
    hub.fails = OSError("quota exceeded")
    done = palora("export", "--adapter", made.adapter, "--out", tmp_path / "out", "--push-to-hub", "facts")
    assert done.code == 1 and "ada/facts failed (quota exceeded); the adapter is in" in done.complaints[-1]
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_options_that_do_not_go_together(made, tmp_path):
    done = palora("export", "--adapter", made.adapter, "--out", tmp_path / "o", "--as", "merged", "--push-to-hub", "x")
    assert done.code == 2 and "sends adapters" in done.err
    done = palora("export", "--adapter", made.adapter, "--out", tmp_path / "o", "--public")
    assert done.code == 2 and "--public goes with --push-to-hub" in done.err


def record(**changes):
    update = {"norm": 1.0, "relative_norm": 0.1, "leak": None, "drift": 0.02}
    made = {"update": update, "facts": {"n": 3, "file": "f.jsonl"}, "rule": "none", "arm": "palora"}
    return made | {"model": "owner/base", "training": {"settings": {"r": 40}}} | changes


EVALUATION = {
    "arms": {
        "base": {"recall": 0.0, "locality": 0.9, "skills": {"sums": {"accuracy": 0.75, "n": 8}}},
        "expert": None,
        "lora": {"recall": 1.0, "locality": 0.5, "skills": {"sums": {"accuracy": 0.25, "n": 8}}},
        "palora": {
            **{"recall": 0.995, "paraphrase_recall": None, "locality": 0.85, "n_facts": 3, "n_known": 20},
            "skills": {"sums": {"accuracy": 0.7, "n": 8}},
            "harness": {"arc_easy": {"metrics": {"acc": {"value": 0.5, "stderr": 0.1}}, "n": 4, "version": 1.0}},
        },
    }
}


def test_the_card_has_a_head_that_the_hub_reads_and_the_tables(tmp_path):
    text = model_card(record(), EVALUATION)
    head = RepoCard(text).data.to_dict()
    assert head["base_model"] == "owner/base" and head["library_name"] == "peft" and "license" not in head
    assert head["tags"] == ["lora", "palora", "knowledge-injection"]
    for line in (
        "| answered right | base | lora | palora |",
        "| facts learned | 0.0% | 100.0% | 99.5% |",
        "| known facts | 90.0% | 50.0% | 85.0% |",
        "| skill sums (8 problems) | 75.0% | 25.0% | 70.0% |",
        "| lm-eval arc_easy: acc | – | – | 50.0% |",
        "3 new facts, 20 known facts that were not trained on.",
    ):
        assert line in text.splitlines(), line
    assert "in other words" not in text and "--max-lora-rank 64" in text
    assert "evaluation.json" in model_card(record())


def test_a_base_that_is_a_folder_is_named_without_its_place_and_gives_its_licence(tmp_path):
    base = tmp_path / "secret" / "mine"
    base.mkdir(parents=True)
    assert licence_of(str(base)) == {}
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: mine\ntags: [a]\n---\n# Mine\n")
    text = model_card(record(model=str(base)), EVALUATION)
    head = RepoCard(text).data.to_dict()
    assert head["license"] == "other" and head["license_name"] == "mine" and "base_model" not in head
    assert "`mine`" in text and "secret" not in text
    for broken in ("---\nlicense: [a\n---\n", "no head", "---\n- a\n---\n"):
        (base / "README.md").write_text(broken)
        assert licence_of(str(base)) == {}


def test_a_rank_over_what_a_server_takes_is_named(made, tmp_path, monkeypatch, caplog):
    assert [vllm_rank(r) for r in (1, 2, 8, 9, 257, 512, 513)] == [1, 8, 8, 16, 320, 512, None]
    told = json.loads(palora("export", "--adapter", made.adapter, "--out", tmp_path / "a", "--json").out)
    assert told["r"] == 2 and told["vllm"] == "--max-lora-rank 8"
    monkeypatch.setattr("palora.results.model_card.VLLM_RANKS", (1,))
    done = palora("export", "--adapter", made.adapter, "--out", tmp_path / "b", "--json")
    assert "rank 2 is over what vLLM serves" in caplog.text and json.loads(done.out)["vllm"] is None
    assert "(rank 2 is over what vLLM takes, 1: merge it)" in (tmp_path / "b" / "README.md").read_text()


def test_a_whole_run_sends_its_card_with_the_tables(made, tmp_path, hub, caplog):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"model: {made.model}\nskills: [chain]\nfacts: {made.facts}\narms: {{lora: null}}\n")
    changes = [
        "protect.keep.examples=8",
        "inject.epochs=1",
        "inject.r=2",
        "evaluate.problems=4",
        "inject.targets_by=bare",
    ]
    changes += ["evaluate.max_answer_tokens=4", f"known_facts={made.known_facts}", f"prompts={tmp_path / 'p.txt'}"]
    (tmp_path / "p.txt").write_text("Where?\n")
    done = palora("run", recipe, *changes, "--out", tmp_path / "run", "--push-to-hub", "society/facts")
    assert done.code == 0, done.err
    card = hub.files["README.md"].decode()
    assert "## What was learned, and what was lost" in card and "| skill chain (4 problems) |" in card
    assert card == (tmp_path / "run" / "adapter" / "README.md").read_text()
    again = palora("run", recipe, *changes, "--out", tmp_path / "run")
    assert again.code == 0 and f"{tmp_path / 'run' / 'adapter'} is up to date" in caplog.text, (
        "the card is prose, and no part of what was made"
    )
