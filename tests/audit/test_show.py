"""The page of what masks keep: complete, alone, escaped, and usable on a phone and with a keyboard."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch

import transformer_dropout as td
from transformer_dropout.audit import show as page_of
from transformer_dropout.audit.tiny_models import tiny_model
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig

EVIL = "</script><img src=x onerror=alert(1)>"
TOKENS = [*"abcdefgh", EVIL, "<b>"]
IDS = torch.arange(4, 14)[None]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = Decoder(64, DecoderConfig(width=32, heads=4, blocks=2, context=16))
    td.regularize_(
        model,
        td.Recipe(
            [
                td.Rule("mlp_output", td.LearnedDropout, heads=4, shift=1.0),
                td.Rule("attention_weights", td.Dropout, p=0.3),
                td.Rule("embedding", td.Dropout, p=td.Linear(0.0, 0.2)),
            ]
        ),
    ).set_progress(1.0)
    return model


@pytest.fixture(scope="module")
def early(model):
    return {name: tensor / 2 for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def page(model, early, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "masks.html"
    text = td.show(model, (IDS,), tokens=TOKENS, checkpoints={0.0: early}, title=EVIL)
    file.write_text(text, encoding="utf-8")
    return file


def content_of(text):
    found = re.search(r'<script type="application/json" id="content">(.*?)</script>', text, flags=re.DOTALL)
    return json.loads(found[1])


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.addresses = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action")]


def test_every_place_and_moment_is_on_the_page(page):
    content = content_of(page.read_text(encoding="utf-8"))
    assert [moment["name"] for moment in content["moments"]] == ["0% of training", "the model as it is"]
    kinds = [place["kind"] for place in content["places"]]
    assert sorted(kinds) == ["attention weights"] * 2 + ["embedding"] + ["mlp output"] * 2
    before, after = (dict(zip(kinds, moment["places"], strict=True)) for moment in content["moments"])
    # The schedule's rate was 0 then, and what is dropped by nobody is kept.
    assert (before["embedding"]["rate"], before["embedding"]["drawn"]["mean"]) == (0.0, 1.0)
    assert after["embedding"]["rate"] == pytest.approx(0.2)
    learned = after["mlp output"]
    assert learned["expected"]["columns"] == 32 and len(learned["expected"]["tokens"]) == 10
    assert 0 < learned["entropy"] < 0.7
    assert before["mlp output"]["expected"]["mean"] != learned["expected"]["mean"]
    assert after["attention weights"]["attention"]["heads"] == 4


def test_the_model_is_as_it_was_afterwards(model, early):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    td.show(model, (IDS,), checkpoints={0.5: early})
    assert all(tensor.equal(state[name]) for name, tensor in model.state_dict().items())
    assert td.handle_of(model).progress == 1.0
    with pytest.raises(td.InputError, match="checkpoint '50% of training' does not fit the model"):
        td.show(model, (IDS,), checkpoints={0.5: {}})
    assert all(tensor.equal(state[name]) for name, tensor in model.state_dict().items())


def test_the_page_loads_nothing_and_all_text_is_escaped(page):
    text = page.read_text(encoding="utf-8")
    found = Tags(text)
    assert found.addresses == []
    assert not set(found.tags) & {"link", "img", "iframe", "object", "base"}
    assert found.tags.count("script") == 2
    assert "innerHTML" not in text
    assert EVIL not in text


def test_what_is_too_long_is_cut_and_the_page_says_so(monkeypatch):
    monkeypatch.setattr(page_of, "MOST_TOKENS", 6)
    monkeypatch.setattr(page_of, "MOST_KEYS", 5)
    monkeypatch.setattr(page_of, "MOST_COLUMNS", 20)
    text = td.show(tiny_model("gpt2"), {"input_ids": IDS}, tokens=TOKENS)
    for sentence in (
        "Of 10 tokens the first 6 are pictured.",
        "Where there are more than 20 channels, neighbours share a column.",
        "Of the attention weights those of the first 5 tokens are pictured.",
    ):
        assert sentence in text
    place = content_of(text)["moments"][0]["places"][0]["drawn"]
    assert (len(place["tokens"]), place["columns"]) == (6, 16)


def test_a_model_that_drops_nothing_has_a_page_too():
    assert "Nothing drops here" in td.show(torch.nn.Linear(4, 4), torch.ones(1, 4))


PROBE = """<script>
document.body.style.width = "360px";
const body = document.body, left = body.getBoundingClientRect().left;
const parts = [...body.querySelectorAll("*")].filter(part => !part.closest(".scroll"));
body.dataset.reaches = Math.max(...parts.map(part => part.getBoundingClientRect().right - left));
body.dataset.smallest = Math.min(...[...body.querySelectorAll("p, span, td, th, label")]
  .map(part => parseFloat(getComputedStyle(part).fontSize)));
const shade = () => [...body.querySelectorAll(".token")].map(token => token.style.background).join();
const before = shade();
const moment = document.getElementById("moment");
moment.value = 0;
moment.dispatchEvent(new Event("input"));
body.dataset.moved = String(shade() !== before);
body.dataset.moment = document.getElementById("moment-name").textContent;
const view = document.getElementById("view");
view.value = "drawn";
view.dispatchEvent(new Event("change"));
body.dataset.drawn = shade() !== before;
const canvas = [...document.querySelectorAll("details[open] canvas")][0];
const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
const colours = [...Array(pixels.length / 4).keys()].map(n => pixels.slice(4 * n, 4 * n + 3).join());
body.dataset.colours = new Set(colours).size;
const reached = [...body.querySelectorAll("select, input, summary")].filter(part => part.tabIndex === 0);
body.dataset.reachable = reached.length;
const summary = body.querySelector("details:not([open]) summary");
summary.focus();
body.dataset.focused = String(document.activeElement === summary);
const tokens = [...body.querySelectorAll(".token")];
body.dataset.evil = tokens.filter(token => token.textContent.includes("onerror")).length;
body.dataset.images = body.querySelectorAll("img").length;
</script></body>"""


def test_a_phone_and_a_keyboard_reach_everything(page, tmp_path, browse):
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE), encoding="utf-8")
    rendered = browse(probed, "--dump-dom")
    body = dict(re.findall(r'data-([a-z]+)="([^"]*)"', re.search(r"<body[^>]*>", rendered)[0]))
    assert float(body["reaches"]) <= 360
    assert float(body["smallest"]) >= 12
    assert (body["moved"], body["moment"], body["drawn"]) == ("true", "0% of training", "true")
    assert int(body["colours"]) >= 2
    # Five places, three controls of the page, a choice of heads in each place.
    assert int(body["reachable"]) == 5 + 3 + 5
    assert body["focused"] == "true"
    # Its text is shown, its markup never runs.
    assert (int(body["evil"]), body["images"]) == (3, "0")


def test_a_browser_can_take_a_picture_of_the_page(page, tmp_path, browse):
    picture = tmp_path / "page.png"
    browse(page, f"--screenshot={picture}")
    assert picture.stat().st_size > 60_000  # a blank page of this size is below 10 kB
