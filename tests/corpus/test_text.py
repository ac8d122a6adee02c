"""Special tokens of text rows: none is there twice, none ends a prompt, and that is counted."""

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import ByT5Tokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from dlogp_ray.corpus.rows import RowRules, check_rows
from dlogp_ray.corpus.text import TextTokenizer
from dlogp_ray.errors import RowRejected

PAD, EOS, BOS = 0, 1, 2
SPECIAL = ["<pad>", "<eos>", "<bos>", "<im_end>"]
END = 3
CHARACTERS = "0123456789+="


def ids_of(text: str) -> list[int]:
    """A character's id is 4 + its place in 0123456789+=."""
    return [4 + CHARACTERS.index(c) for c in text]


def word_level(single: str | None = None) -> Any:
    """One id a character; what ``single`` says is put around a text, as Llama 3's files say it."""
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    if single:
        tokenizer.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single=single,
                    special_tokens=[("<bos>", BOS), ("<eos>", EOS), ("<im_end>", END)],
                ),
            ]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        additional_special_tokens=["<im_end>"],
    )


def llama(*, eos: bool) -> Any:
    """The class of Llama's sentencepiece files, which builds its template from two flags."""
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *CHARACTERS, "▁"])}
    return LlamaTokenizer(
        vocab=vocabulary,
        merges=[],
        unk_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        add_bos_token=True,
        add_eos_token=eos,
        add_prefix_space=False,
        extra_special_tokens=["<im_end>"],
    )


def one_for_both() -> Any:
    """As GPT-2: one token begins and ends."""
    tokenizer = word_level("<eos> $A")
    tokenizer.bos_token = "<eos>"
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "none": word_level,
    "bos": lambda: word_level("<bos> $A"),
    "bos and eos": lambda: word_level("<bos> $A <eos>"),
    "eos": lambda: word_level("$A <eos>"),
    "llama": lambda: llama(eos=False),
    "llama with eos": lambda: llama(eos=True),
}
BEGINS = {name for name in TOKENIZERS if "bos" in name or "llama" in name}
ENDS = {name for name in TOKENIZERS if "eos" in name}


def checked(tokenizer: Any, row: dict[str, Any], **options: Any) -> dict[str, Any]:
    settings = {"prompt_format": "raw", "append_eos": False} | options
    text = TextTokenizer(tokenizer, **settings)
    rules = RowRules(vocab_size=400, max_tokens=None, carry={})
    rows = [(0, {"sample_id": "a", "prompt": "1+2=", "response": "3"} | row)]
    (found,) = check_rows(rows, "file", rules, lambda: text).to_pylist()
    return dict(found)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("written", ["", "<bos>"], ids=["bare", "rendered"])
def test_a_prompt_begins_once_and_ends_as_its_text_does(name: str, written: str) -> None:
    found = checked(TOKENIZERS[name](), {"prompt": f"{written}1+2="})
    assert found["status"] == "ok"
    begins = [BOS] if written or name in BEGINS else []
    assert found["prompt_ids"] == begins + ids_of("1+2=")
    assert found["response_ids"] == ids_of("3")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_was_not_added_is_counted(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    ended = ["end_left_off"] if name in ENDS else []
    assert checked(tokenizer, {})["special_tokens"] == ended
    there = ["bos_there"] if name in BEGINS else []
    assert checked(tokenizer, {"prompt": "<bos>1+2="})["special_tokens"] == there + ended


@pytest.mark.parametrize("name", TOKENIZERS)
def test_special_tokens_inside_a_text_are_what_the_text_says(name: str) -> None:
    row = {"prompt": "<bos>1<eos><bos>2<eos>", "response": "<bos>3<bos><bos>4"}
    found = checked(TOKENIZERS[name](), row)
    assert found["prompt_ids"] == [BOS, *ids_of("1"), EOS, BOS, *ids_of("2"), EOS]
    assert found["response_ids"] == [BOS, *ids_of("3"), BOS, BOS, *ids_of("4")]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_text_that_begins_twice_is_rejected_by_name(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    found = checked(tokenizer, {"prompt": "<bos><bos>1+2="})
    assert (found["status"], found["prompt_ids"]) == ("two_bos", [])
    assert "begins with <bos> twice" in found["error"]
    # A template puts one in front of the message's own.
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}"
    found = checked(tokenizer, {"prompt": "<bos>1"}, prompt_format="chat")
    assert (found["status"], "<bos> twice" in found["error"]) == ("two_bos", True)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("begins", ["", "{{ bos_token }}"])
def test_a_conversation_is_what_its_template_writes(name: str, begins: str) -> None:
    tokenizer = TOKENIZERS[name]()
    tokenizer.chat_template = begins + "{{ messages[0]['content'] }}<im_end>="
    messages = [{"role": "user", "content": "1+2"}]
    found = checked(tokenizer, {"prompt": None, "messages": messages})
    assert found["prompt_ids"] == [BOS] * bool(begins) + ids_of("1+2") + [END] + ids_of("=")
    assert found["special_tokens"] == []
    asked = checked(tokenizer, {"prompt": "1+2"}, prompt_format="chat")
    assert asked["prompt_ids"] == found["prompt_ids"]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(
    ("response", "ids", "special"),
    [
        ("3", [*ids_of("3"), EOS], []),
        ("3<eos>", [*ids_of("3"), EOS], ["eos_there"]),
        ("3<im_end>", [*ids_of("3"), END], ["eos_there"]),  # as generation_config.json names it
        ("3<eos>4", [*ids_of("3"), EOS, *ids_of("4"), EOS], []),
        ("<eos>", [EOS], ["eos_there"]),
    ],
)
def test_an_end_is_appended_where_there_is_none(
    name: str, response: str, ids: list[int], special: list[str]
) -> None:
    found = checked(TOKENIZERS[name](), {"response": response}, append_eos=True, ends=(EOS, END))
    assert found["response_ids"] == ids
    assert [one for one in found["special_tokens"] if one != "end_left_off"] == special
    without = checked(TOKENIZERS[name](), {"response": response})
    assert without["response_ids"] == (ids if special else ids[:-1])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_nothing_but_a_beginning_predicts_the_response_to_an_empty_prompt(name: str) -> None:
    found = checked(TOKENIZERS[name](), {"prompt": ""})
    expected = ("ok", [BOS]) if name in BEGINS else ("empty_prompt", [])
    assert (found["status"], found["prompt_ids"]) == expected


def test_one_token_that_begins_and_ends() -> None:
    """It begins the prompt, also where the tokenizer is given nothing else."""
    tokenizer = one_for_both()
    assert checked(tokenizer, {})["prompt_ids"] == [EOS, *ids_of("1+2=")]
    assert checked(tokenizer, {"prompt": "<eos>1"})["prompt_ids"] == [EOS, *ids_of("1")]
    assert checked(tokenizer, {"prompt": "<eos>"})["prompt_ids"] == [EOS]
    assert checked(tokenizer, {"prompt": ""})["prompt_ids"] == [EOS]


def test_tokenizers_in_python_that_append_an_end() -> None:
    """ByT5 has a byte b as id 3 + b, and ends a text with </s>, its id 1."""
    found = checked(ByT5Tokenizer(), {"prompt": "ab", "response": "c</s>"}, append_eos=True)
    assert found["prompt_ids"] == [3 + ord("a"), 3 + ord("b")]
    assert found["response_ids"] == [3 + ord("c"), 1]
    assert found["special_tokens"] == ["end_left_off", "eos_there"]


def test_several_tokens_in_front_are_completed() -> None:
    """As of ChatGLM, whose texts begin with [gMASK]<sop>."""
    tokenizer = word_level("<im_end> <bos> $A")
    for text in ("1", "<bos>1", "<im_end><bos>1"):
        assert checked(tokenizer, {"prompt": text})["prompt_ids"] == [END, BOS, *ids_of("1")]
    found = checked(tokenizer, {"prompt": "<im_end><bos><im_end><bos>1"})
    assert (found["status"], "<im_end><bos> twice" in found["error"]) == ("two_bos", True)


def test_a_tokenizer_that_frames_as_bert_does() -> None:
    """[CLS] text [SEP], without a token that is called beginning or end."""
    tokenizer = word_level()
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.BertProcessing(("<eos>", EOS), ("<bos>", BOS))
    framed = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", cls_token="<bos>", sep_token="<eos>"
    )
    assert framed("1")["input_ids"] == [BOS, *ids_of("1"), EOS]
    found = checked(framed, {"prompt": "<bos>1"})
    assert found["prompt_ids"] == [BOS, *ids_of("1")]
    assert found["special_tokens"] == ["bos_there", "end_left_off"]
    assert checked(framed, {"prompt": "<bos><bos>1"})["status"] == "two_bos"


def test_a_text_far_too_long_is_rejected_by_its_beginning() -> None:
    tokenizer = word_level()
    asked: list[int] = []

    class Counting:
        def __call__(self, text: str, **more: Any) -> Any:
            asked.append(len(text))
            return tokenizer(text, **more)

        def __len__(self) -> int:
            return len(tokenizer)

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

    texts = TextTokenizer(
        Counting(), prompt_format="raw", append_eos=False, ends=(), max_tokens=100
    )
    assert texts.response("1" * 100).ids == ids_of("1" * 100)
    # A character is a token: 1,600 of them, sixteen times the limit, are enough to see it.
    assert len(texts.response("1" * 1_600).ids) == 1_600  # which is rejected where rows are checked
    asked.clear()
    with pytest.raises(RowRejected, match=r"first 1,600 of 1,000,000 characters have 1,600 tokens"):
        texts.response("1" * 1_000_000)
    with pytest.raises(RowRejected, match="the policies take 100"):
        texts.prompt("1" * 1_000_000)
    assert max(asked) == 1_600


def test_a_text_of_long_tokens_is_not_taken_for_too_long() -> None:
    vocabulary = {"<pad>": 0, " " * 64: 1, "a": 2}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(" {64}|a"), "isolated")
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="a", pad_token="<pad>")
    texts = TextTokenizer(made, prompt_format="raw", append_eos=False, max_tokens=10)
    assert texts.response(" " * 64 * 10).ids == [1] * 10  # 640 characters, 64 a token
