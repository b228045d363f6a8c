"""Asking the arms of a finished run: the answers are those that were measured, and the page is for one person alone."""

import http.client
import json
import re
import shutil
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
import yaml
from browsers import Chromium, opened
from command import palora
from conftest import rising
from peft import PeftModel
from transformers import AutoModelForCausalLM

from palora.common.errors import InputError
from palora.common.files import read_json
from palora.data.facts import read_facts, write_facts
from palora.front import chatting, pipeline
from palora.front.asking import Arms
from palora.front.recipe import parse_recipe
from palora.results.inspection import inspect_folder
from palora.results.table import evaluation_table
from palora.testbed.world import known_facts, new_facts

LONGEST = 24  # tokens: longer than every right answer here
ARMS = ["base", "lora", "half.rate", "palora"]


def recipe(model, folder, **changes):
    write_facts(folder / "new.jsonl", new_facts(4))
    write_facts(folder / "known.jsonl", known_facts()[:2])
    (folder / "prompts.txt").write_text("Where was Zed born?\n")
    training = {"r": 2, "epochs": 6, "learning_rate": 0.02, "stop_at_recall": None, "drift": 0, "targets_by": "bare"}
    return {
        "model": str(model),
        "skills": ["chain"],
        "facts": str(folder / "new.jsonl"),
        "known_facts": str(folder / "known.jsonl"),
        "prompts": str(folder / "prompts.txt"),
        "protect": {"strength": 1, "keep": {"examples": 8}},
        "inject": training,
        "evaluate": {"problems": 4, "max_answer_tokens": LONGEST, "answers": 8},
        **changes,
    }


@pytest.fixture(scope="module")
def finished(model_folder, tmp_path_factory):
    """A run with three trained arms, of different ranks."""
    folder = tmp_path_factory.mktemp("asked")
    shutil.copytree(model_folder, folder / "model")
    arms = {"half.rate": {"inject": {"learning_rate": 0.01, "r": 3}}}
    pipeline.run(parse_recipe(recipe(folder / "model", folder, arms=arms)), folder / "run")
    return folder / "run"


@pytest.fixture
def moved(finished, tmp_path):
    """A copy of the run, to be changed."""
    shutil.copytree(finished, tmp_path / "moved")
    return tmp_path / "moved"


def measured(run):
    """Questions about facts, with what every arm answered when it was measured."""
    asked = [row for row in read_json(run / "evaluation.json")["answers"] if row["kind"] == "fact"]
    return {row["prompt"]: {arm: said["text"] for arm, said in row["arms"].items()} for row in asked}


# --- the answers ----------------------------------------------------------------------------------


def test_the_answers_are_those_that_were_measured(finished):
    arms = Arms(finished)
    assert arms.names == ARMS
    wanted = measured(finished)
    found = {question: arms.ask(question, LONGEST) for question in wanted}
    assert found == wanted
    assert len({text for said in found.values() for text in said.values()}) > 4, "the arms differ"


def test_each_arm_is_its_own_adapter_on_the_model(finished, tokenizer):
    """By transformers and PEFT alone, each adapter on a model of its own."""
    (question, *_) = measured(finished)
    asked = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    for arm, said in Arms(finished).ask(question, LONGEST).items():
        model = AutoModelForCausalLM.from_pretrained(finished.parent / "model").eval()
        if arm != "base":
            folder = finished / "adapter" if arm == "palora" else finished / "arms" / arm / "adapter"
            model = PeftModel.from_pretrained(model, folder).eval()
        ids = model.generate(**prompt, max_new_tokens=LONGEST, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        text = tokenizer.decode(ids, skip_special_tokens=True)
        assert said == text.strip(), arm


def test_a_run_with_an_expert_is_asked_as_it_was_measured(model_folder, tmp_path):
    expert = {"objective": "next_token", "iterations": 2, "batch_size": 8, "validation_size": 4}
    values = recipe(model_folder, tmp_path, expert=expert)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("palora.training.expert.share_correct", rising())
        pipeline.run(parse_recipe(values), tmp_path / "run")
    wanted = measured(tmp_path / "run")
    assert {tuple(said) for said in wanted.values()} == {("base", "expert", "lora", "palora")}
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    arms = Arms(tmp_path / "elsewhere")
    assert {question: arms.ask(question, LONGEST) for question in wanted} == wanted


def test_a_run_made_stage_by_stage_can_be_asked(made):
    assert Arms(made.run).names == ["base", "expert", "palora"]


def test_a_moved_run_and_a_moved_model(moved, finished, tmp_path):
    (question, *_) = measured(finished)
    assert Arms(moved).ask(question, LONGEST) == Arms(finished).ask(question, LONGEST)
    shutil.copytree(finished.parent / "model", tmp_path / "model")
    for marker in moved.rglob("palora.json"):
        record = read_json(marker) | {"model": str(tmp_path / "gone")}
        marker.write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"no longer at .*gone; say where it is by --model"):
        Arms(moved)
    assert Arms(moved, str(tmp_path / "model")).ask(question, LONGEST) == measured(finished)[question]


def test_an_evaluation_of_version_0_8_is_read_as_it_was(moved, finished, capsys):
    """There an expert that was not there is an arm that is null."""
    values = read_json(moved / "evaluation.json")
    assert list(values["arms"]) == ARMS
    old = {"base": values["arms"]["base"], "expert": None, **values["arms"]}
    (moved / "evaluation.json").write_text(json.dumps(values | {"arms": old}))
    assert Arms(moved).names == Arms(finished).names
    assert inspect_folder(moved) == inspect_folder(finished)
    printed = []
    for run in (moved, finished):
        evaluation_table(read_json(run / "evaluation.json"))
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


# --- in the terminal ------------------------------------------------------------------------------


def test_ask_shows_the_arms_side_by_side(finished):
    question, wanted = next(iter(measured(finished).items()))
    result = palora("ask", finished, question, "--max-new-tokens", LONGEST)
    assert result.code == 0 and not result.complaints
    lines = result.out.splitlines()
    assert max(map(len, lines)) <= 100 and lines[0].strip() == question
    (heading,) = [line for line in lines if "palora" in line]
    assert re.split(r"  +", heading.strip()) == ["base (as it was)", "lora (plain LoRA)", "half.rate", "palora"]
    told = palora("ask", finished, question, "--max-new-tokens", LONGEST, "--json")
    assert json.loads(told.out) == {"answers": [{"question": question, "arms": wanted}]}


def test_long_answers_stand_beside_each_other(capsys):
    chatting.show("Why?", {"base": "left " * 20, "palora": "right " * 20})
    rows = [line for line in capsys.readouterr().out.splitlines() if "left" in line]
    assert len(rows) > 1 and all("right" in row and len(row) <= 100 for row in rows)
    assert sum(row.count("left") for row in rows) == 20, "nothing is cut"


def test_ask_takes_several_questions_and_standard_input(finished, monkeypatch):
    import io

    first, second = list(measured(finished))[:2]
    both = palora("ask", finished, first, second, "--max-new-tokens", 6, "--json")
    assert [row["question"] for row in json.loads(both.out)["answers"]] == [first, second]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{first}\n\n{second}\n"))
    assert palora("ask", finished, "--max-new-tokens", 6, "--json").out == both.out


def test_chat_goes_on_after_a_question_that_cannot_be_asked(finished, monkeypatch):
    typed = iter(["", "word " * 400, "Where was Zed born?"])

    def line(prompt):
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", line)
    result = palora("chat", finished, "--max-new-tokens", 4)
    assert result.code == 0 and "longer than the model's 256 tokens" in result.out
    assert "Where was Zed born?" in result.out.partition("longer than")[2]


def test_what_a_model_writes_cannot_steer_the_terminal(capsys):
    chatting.show("\x1b[2Jwhy?", {"base": "[bold]a[/bold]\x1b]0;x\x07", "palora": ""})
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "\x07" not in printed
    assert "[bold]a[/bold]" in printed and "(nothing)" in printed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: shutil.rmtree(run), "no such folder; give the folder of a run"),
        (lambda run: (run / "evaluation.json").unlink(), "it is not finished; start it again and it continues"),
        (lambda run: [shutil.rmtree(run / d) for d in ("adapter", "arms")], "there is no adapter of this run in it"),
        (lambda run: (run / "adapter" / "adapter_model.safetensors").write_bytes(b"x"), "not a readable safetensors"),
        (lambda run: (run / "evaluation.json").write_text("{"), "not valid JSON"),
    ],
)
def test_a_run_that_cannot_be_asked_is_one_line(moved, change, said):
    change(moved)
    result = palora("ask", moved, "Where?")
    assert result.code == 2 and not result.out
    (line,) = result.err.splitlines()
    assert line.startswith("palora: ") and said in line


def test_another_model_is_refused(finished, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(finished.parent / "model")
    shutil.copytree(finished.parent / "model", tmp_path / "other")
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="was made for other weights"):
        Arms(finished, str(tmp_path / "other"))


# --- the page -------------------------------------------------------------------------------------

ATTACK = '<script>alert("x")</script>'


@pytest.fixture
def page(finished):
    """A page that is served, with arms that answer what would be an attack."""
    asked = []

    def ask(question):
        asked.append(question)
        if question == "too long":
            raise InputError("the question is longer than the model's 256 tokens; shorten it")
        return {"base": ATTACK, "palora": f"You said {question}"}

    with chatting.Page(ask, finished) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        server.asked = asked
        yield server
        server.shutdown()


def post(url, question):
    data = urllib.parse.urlencode({"question": question}).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=10) as response:
        return response.url, response.read().decode()


def status(page, method, path, body=None, **headers):
    """The status of a request as it stands, whatever urllib thinks of it."""
    connection = http.client.HTTPConnection("127.0.0.1", page.server_port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    for name, value in {"Host": f"127.0.0.1:{page.server_port}", **headers}.items():
        if value is not None:
            connection.putheader(name.replace("_", "-"), value)
    connection.endheaders(body)
    return connection.getresponse().status


def test_a_question_on_the_page_is_answered_and_escaped(page):
    url, html = post(page.url + "ask", f"why {ATTACK}?")
    assert url == page.url, "a reload asks nothing again"
    assert page.asked == [f"why {ATTACK}?"]
    assert "<script" not in html and html.count("&lt;script&gt;") == 3, "question, and both answers"
    assert "base (as it was)" in html
    with urllib.request.urlopen(page.url, timeout=10) as again:
        assert again.read().decode() == html and page.asked == [f"why {ATTACK}?"]
        policy = again.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and again.headers["Referrer-Policy"] == "no-referrer"
    assert not re.search(r"https?://|<link|<img|<iframe|@import|url\(", html), "nothing is loaded"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    yield from opened(Chromium, tmp_path_factory.mktemp("downloads"))


def test_the_page_in_a_browser(page, browser):
    """Typed, sent, read and loaded again, as a person does it; the console tells what the policy refused."""
    said = "return [...document.querySelectorAll('.subject, .arms p')].map((one) => one.textContent)"
    browser.open(page.url)
    assert browser.run(said) == []
    question = f"why {ATTACK}?"
    browser.run(f"document.querySelector('textarea').value = {json.dumps(question)}")
    browser.run("document.querySelector('form button').click()")
    for _ in range(100):
        if shown := browser.run(said):
            break
        time.sleep(0.1)
    assert shown == [question, ATTACK, f"You said {question}"]
    assert browser.run("return location.href") == page.url
    assert browser.run("return document.querySelectorAll('script, img, link, iframe').length") == 0
    browser.open(page.url)
    assert browser.run(said) == shown and page.asked == [question]
    browser.run("document.querySelector('form button').click()")  # nothing is typed
    assert browser.run("return document.querySelector('form').checkValidity()") is False
    assert page.asked == [question]


def test_a_question_that_cannot_be_answered_is_told_on_the_page(page):
    assert "longer than the model&#39;s 256 tokens" in post(page.url + "ask", "too long")[1]
    assert "(nothing" not in post(page.url + "ask", "  ")[1] and page.asked == ["too long"]


def test_the_page_is_for_who_has_the_token(page):
    good = f"/{page.token}/"
    assert status(page, "GET", good) == 200
    for path in ("/", "/ask", "/wrong/", f"/{page.token[:-1]}/", f"/{page.token}x/", "//", "/%C3%A9/", "/é/"):
        assert status(page, "GET", path.encode().decode("latin-1") if path != "/é/" else "/%E9/") == 403, path
    for path in ("/ask", "/wrong/ask"):
        assert status(page, "POST", path, b"question=x", Content_Length="10") == 403
    assert status(page, "GET", f"/{page.token}/other") == status(page, "GET", f"/{page.token}") == 404
    assert not page.asked
    assert len(page.token) >= 32 and page.server_address[0] == "127.0.0.1"


def test_another_host_name_is_refused(page):
    """A page on the web can point its own name at this machine; then the browser sends that name."""
    path, body = f"/{page.token}/ask", b"question=x"
    for host in ("evil.example", f"evil.example:{page.server_port}", "127.0.0.1.evil.example", "", None):
        assert status(page, "GET", f"/{page.token}/", Host=host) == 403, host
        assert status(page, "POST", path, body, Host=host, Content_Length="10") == 403, host
    assert status(page, "GET", f"/{page.token}/", Host=f"localhost:{page.server_port}") == 200
    assert not page.asked


def test_the_size_of_a_form_is_limited(page):
    path = f"/{page.token}/ask"
    for length, wanted in {str(chatting.LARGEST + 1): 413, "9" * 30: 413, "-1": 411, "ten": 411, None: 411}.items():
        assert status(page, "POST", path, Content_Length=length) == wanted, length
    assert status(page, "PUT", path) == 501 and not page.asked
    fits = b"question=" + b"a" * (chatting.LARGEST - 9)
    assert status(page, "POST", path, fits, Content_Length=str(len(fits))) == 303


def test_chat_with_a_page_says_where_it_is(finished, monkeypatch, capsys):
    def interrupted(server):
        with urllib.request.urlopen(server.url, timeout=10) as response:
            assert "Ask every arm" in response.read().decode()
        raise KeyboardInterrupt

    def serving(server):
        thread = threading.Thread(target=super(chatting.Page, server).serve_forever, daemon=True)
        thread.start()
        try:
            interrupted(server)
        finally:
            server.shutdown()

    monkeypatch.setattr(chatting.Page, "serve_forever", serving)
    result = palora("chat", finished, "--page")
    assert result.code == 0 and re.match(r"Open http://127\.0\.0\.1:\d+/[\w-]{32}/ in a browser", result.out)


def test_the_recipe_of_the_run_is_what_it_was(finished):
    """Asking changes nothing in a run."""
    from command import tree

    before = tree(finished)
    Arms(finished).ask("Where was Zed born?", 2)
    assert tree(finished) == before
    assert yaml.safe_load((finished / "recipe.yaml").read_text())["seed"] == 0
    assert read_facts(finished.parent / "new.jsonl") == new_facts(4)
