"""Conversations in one text are read by the shape of their marks, whatever family wrote them; other texts stay texts."""

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from stages.formats.column_mapping import Purpose
from stages.formats.transcripts import find_mark, parse_transcript
from stages.store.thoughts import answer_behind
from tests.formats.reading import lines, read
from tests.helpers import TINY, inside
from tests.models.test_contract import CHATML, byte_level

Contents = list[tuple[str, str]]

# What stands before the first turn, around a request and around its answer. None of these is named in stages/.
FAMILIES = {
    "kimi": (
        "<|im_system|>system<|im_middle|>Be brief.<|im_end|>",
        "<|im_user|>user<|im_middle|>{}<|im_end|>",
        "<|im_assistant|>assistant<|im_middle|>{}<|im_end|>",
    ),
    "internlm": ("", "<|User|>:{}<eoh>\n", "<|Bot|>:{}<eoa>\n"),
    "chatglm2": ("[Round 1]\n\n", "问：{}\n\n", "答：{}\n\n"),
    "glm4": ("[gMASK]<sop>", "<|user|>\n{}", "<|assistant|>\n{}"),
    "minimax": ("]~!b[]~b]system\nBe brief.[e~[\n", "]~b]user\n{}[e~[\n", "]~b]ai\n{}[e~[\n"),
    "nemotron4": (
        "<extra_id_0>System\nBe brief.\n\n",
        "<extra_id_1>User\n{}\n",
        "<extra_id_1>Assistant\n{}\n",
    ),
    "stablelm": ("<|SYSTEM|>Be brief.", "<|USER|>{}", "<|ASSISTANT|>{}"),
    "jamba": ("<|startoftext|>", "<|bom|><|user|> {}<|eom|>", "<|bom|><|assistant|> {}<|eom|>"),
    "exaone": (
        "[|system|]Be brief.[|endofturn|]\n",
        "[|user|]{}\n",
        "[|assistant|]{}[|endofturn|]\n",
    ),
    "openchat": (
        "<s>",
        "GPT4 Correct User: {}<|end_of_turn|>",
        "GPT4 Correct Assistant: {}<|end_of_turn|>",
    ),
    "seed": ("", "<seed:bos>user\n{}<seed:eos>", "<seed:bos>assistant\n{}<seed:eos>"),
    "ernie": ("<|begin_of_sentence|>", "User: {}\n", "Assistant: {}<|end_of_sentence|>"),
    "apertus": (
        "<s><|system_start|>Be brief.<|system_end|>",
        "<|user_start|>{}<|user_end|>",
        "<|assistant_start|>{}<|assistant_end|>",
    ),
    "dots": (
        "",
        "<|userprompt|>{}<|endofuserprompt|>",
        "<|response|>{}<|endofresponse|>",
    ),
    "ling": (
        "<role>SYSTEM</role>Be brief.",
        "<role>HUMAN</role>{}",
        "<role>ASSISTANT</role>{}<|role_end|>",
    ),
    "minicpm": ("", "<用户>{}", "<AI>{}"),
    "bluelm": ("", "[|Human|]:{}", "[|AI|]:{}</s>"),
    "skywork": ("", "[USER]{}[SEP]", "[BOT]{}[SEP]"),
    "hunyuan": (
        "<｜hy_begin▁of▁sentence｜>Be brief.",
        "<｜hy_User｜>{}",
        "<｜hy_Assistant｜>{}<｜hy_place▁holder▁no▁2｜>",
    ),
    "reka": ("", "human: {} <sep> ", "assistant: {} <sep> "),
    "grok": ("", "Human: {}<|separator|>\n\n", "Assistant: {}<|separator|>\n\n"),
    "orion": ("<s>", "Human: {}\n\n", "Assistant: </s>{}</s>"),
    "phoenix": ("", "Human: <s>{}</s>", "Assistant: <s>{}</s>"),
    "koala": ("BEGINNING OF CONVERSATION: ", "USER: {} ", "GPT: {}</s>"),
    "dolly": ("", "### Instruction:\n{}\n\n", "### Response:\n{}\n\n### End\n"),
    "xml": ("<system>Be brief.</system>\n", "<user>{}</user>\n", "<assistant>{}</assistant>\n"),
    "double": ("<<SYS>>Be brief.", "<<USER>>{}", "<<ASSISTANT>>{}"),
    "pieces": ("", "▁USER: {}", "▁ASSISTANT: {}</s>"),
    "header": ("", "<|header|>user<|body|>{}<|stop|>", "<|header|>assistant<|body|>{}<|stop|>"),
    "loose": ("", "<|who|>user {}<|done|>", "<|who|>assistant {}<|done|>"),
    "windows": ("", "<|user|>\r\n{}</s>\r\n", "<|assistant|>\r\n{}</s>\r\n"),
    "square": ("[SYS]Be brief.[/SYS]", "[USR]{}[/USR]", "[ASST]{}[/ASST]"),
    "ai": ("", "Human: {}\n", "AI: {}\n"),
    "bold": ("", "**User:** {}\n\n", "**Assistant:** {}\n\n"),
    "ruled": ("", "=== user ===\n{}\n", "=== assistant ===\n{}\n"),
    "stripped": ("", "user\n{}\n", "model\n{}\n"),
    "guidance": ("", "{{#user~}}\n{}\n{{~/user}}\n", "{{#assistant~}}\n{}\n{{~/assistant}}\n"),
}
REQUEST = "Sell me a lamp, number {}."
ANSWER = "Here you are:\n\n- lamp {}\n- <b>bulb</b>, [1]"


def rendered(family: str, number: int) -> tuple[str, Contents]:
    """Return a conversation of one or two exchanges as a family writes it, and its contents by role."""
    lead, user, assistant = FAMILIES[family]
    text = lead
    contents: Contents = [("system", "Be brief.")] * ("Be brief." in lead)
    for exchange in range(1 + number % 2):
        request = REQUEST.replace("{}", f"{number}.{exchange}")
        answer = ANSWER.replace("{}", str(number))
        text += user.replace("{}", request, 1) + assistant.replace("{}", answer, 1)
        contents += [("user", request), ("assistant", answer)]
    return text, contents


@pytest.mark.parametrize("family", FAMILIES)
def test_turns_are_read_whoever_wrote_their_marks(family: str, tmp_path: Path) -> None:
    texts, expected = zip(*[rendered(family, number) for number in range(4)], strict=True)
    result = read(lines(tmp_path, [{"text": text} for text in texts]))
    assert not result.bad_rows
    for row, contents in zip(result.parsed, expected, strict=True):
        turns = [(turn["role"], turn["content"]) for turn in row.messages]
        spoken = [*turns, ("assistant", row.answers[0])]
        said_before = [turn for turn in spoken if turn != ("system", "BEGINNING OF CONVERSATION:")]
        assert said_before == contents


TEMPLATES = [
    *Path(str(files("trl"))).glob("chat_templates/*.jinja"),
    *Path(str(files("stages"))).glob("models/templates/*.jinja"),
]
# their conversations have parts, or a recipient beside the role
PARTS = ("idefics", "smolvlm", "llava", "muse", "vl", "vision")
CHAT = [
    {"role": "user", "content": "Sell me a lamp."},
    {"role": "assistant", "content": "Here you are."},
    {"role": "user", "content": "Why?\n\nSay it."},
    {"role": "assistant", "content": "So.\n\n- a\n- b"},
]


def renderings() -> Iterator[tuple[str, str]]:
    """Yield the conversation as each template writes it, with the template's name."""
    tokenizer = byte_level(["<s>", "</s>", *CHATML], bos_token="<s>", eos_token="</s>")
    for template in TEMPLATES:
        tokenizer.chat_template = template.read_text(encoding="utf-8")
        if not any(part in template.name for part in PARTS):
            yield template.name, tokenizer.apply_chat_template(CHAT, tokenize=False)


@pytest.mark.extended
def test_every_template_that_can_be_trained_can_be_read_again() -> None:
    names = list[str]()
    for name, text in renderings():
        turns = parse_transcript(text, plain=True) or []
        spoken = [
            (turn["role"], answer_behind(turn["content"]).strip())
            for turn in turns
            if turn["role"] != "system"
        ]
        assert spoken == [(turn["role"], turn["content"]) for turn in CHAT], name
        names.append(name)
    assert len(names) > 30


def test_the_thought_of_a_channel_is_one(tmp_path: Path) -> None:
    text = (
        "<|start|>user<|message|>2 + 2?<|end|><|start|>assistant<|channel|>analysis<|message|>Add.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Yes<|return|>"
    )
    [row] = read(lines(tmp_path, [{"text": text}])).parsed
    assert row.answers == ["<think>\nAdd.\n</think>\n\nYes"]


# Marks of turns that cannot be read as such, in every row of a file
UNREADABLE = {
    "no role": "<reserved_106>Sell me a lamp.<reserved_107>Here you are.",
    "no word": "<|startoftext|>Sell me a lamp.<|extra_0|>Here you are.<|eos|>",
    "in prose": "A turn begins with <|user|>, an answer with <|assistant|>.",
    "begun before": "Be brief.<｜User｜>Sell me a lamp.<｜Assistant｜>Here you are.",
    "a part": "<|im_end|>\nHere you are.",
    "tools": (
        "<|user|>Sell me a lamp.<|assistant|><|tool_calls|>f{}<|done|>\n<|observation|>1<|assistant|>Here."
    ),
    "two users": "<|user|>\na</s>\n<|user|>\nb</s>\n<|assistant|>\nc</s>\n",
    "other language": "<|frage|>Ein Licht?<|ende|><|antwort|>Hier bitte.<|ende|>",
    "own words": "<|ask|>Sell me a lamp.<|tell|>Here you are.",
    "one role twice": "<|BOT|>user\nSell me a lamp.<|EOT|><|BOT|>assistant\nHere you are.<|EOT|>",
    "headings": "Text.\n\n### Instruction:\nSell me a lamp.\n\n### Response:\nHere you are.",
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_marks_that_are_not_read_are_refused_until_the_user_means_them_as_text(
    kind: str, tmp_path: Path
) -> None:
    file = lines(tmp_path, [{"text": UNREADABLE[kind]}])
    result = read(file)
    assert not result.parsed
    way_out = "data.form.turns=merge" if kind == "two users" else "format=texts"
    assert way_out in str(result.bad_rows[0].error)
    result = read(file, format="texts")
    assert [row.answers for row in result.parsed] == [[UNREADABLE[kind]]]
    assert not result.parsed[0].messages


@pytest.mark.extended
def test_the_key_that_leaves_marks_in_a_text_works_as_typed(tmp_path: Path) -> None:
    file = lines(tmp_path, [{"text": UNREADABLE["no role"]}] * 3)
    line = ["stage=source", *TINY, "data=file", f"data.path={file}", f"outputs={tmp_path / 'out'}"]
    refusal = inside(*line)
    assert refusal.returncode == 1
    assert "data.file.format=texts" in refusal.stderr
    assert inside(*line, "data.file.format=texts").returncode == 0


PROSE = {
    "table": "<td>User</td><td>AI</td> are the columns of this table.",
    "code": "if(request.user){ ask(); } else { request.assistant(); }",
    "ruby": "users.each { |user| puts user }\nbots.each { |bot| puts bot }",
    "c++": "std::cout << user << bot;\nstd::vector<User> users; std::vector<Bot> bots;",
    "placeholders": "The user met an assistant, and {{user}} became {{bot}}.",
    "f-string": "{user} and {bot} met",
    "play": "ROMEO: But soft!\nJULIET: Ay me!\nROMEO: She speaks.",
    "interview": "INTERVIEWER: Why?\nGUEST: Because.\nINTERVIEWER: And then?\nGUEST: Nothing.",
    "questions": "Q: What is a lamp?\nA: A light.\nQ: Why?\nA: It is dark.",
    "mail": "From: a@b.c\nUser: Anna\n\nDear all, the assistant is out.",
    "log": "2024-01-01 [INFO] [user] login\n2024-01-01 [INFO] [assistant] started",
    "record": "User: anna\nSystem: Linux\nAI: off\n",
    "ini": "[user]\nname=Ann\n[system]\nos=linux\n[bot]\non=1",
    "html": "<!DOCTYPE html><html><body><user-card>x</user-card></body></html>",
    "xml": "<system><user>root</user><model>X1</model></system>",
    "list": "<users><user>Anna</user><user>Ben</user></users>",
    "namespaces": "<soap:User>a</soap:User><soap:Bot>b</soap:Bot>",
    "types": "<account_type>user</account_type>\n<account_type>bot</account_type>",
    "links": "[User](http://a) and [Assistant](http://b) are pages.",
    "markdown": "## User guide\n\nText.\n\n## Assistant\n\nText.",
    "bullets": "- User: a person\n- Assistant: a program",
    "pipes": "| User | Bot |\n|---|---|\n| a | b |",
    "infilling": "<|fim_prefix|>def f():<|fim_suffix|>\n<|fim_middle|>return user",
    "repository": "<|file_sep|>model.py\nimport user\n<|file_sep|>user.py\nx = 1",
    "packed": "doc one<|endoftext|>User guide for two<|endoftext|>AI is three",
    "begun": "<|begin|>A lamp is useful.",
    "pictures": "<|photo|>A lamp.<|photo|>A chair.",
    "packed with begins": "<|startoftext|>A lamp.<|endoftext|><|startoftext|>A chair.<|endoftext|>",
    "manual": "### Instruction manual\n\nPress the button.",
}


@pytest.mark.parametrize("kind", PROSE)
def test_texts_of_other_kinds_stay_texts(kind: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": f"{PROSE[kind]}\n{number}"} for number in range(3)]
    result = read(lines(tmp_path, rows))
    assert not result.bad_rows
    assert [row.answers[0].strip() for row in result.parsed] == [row["text"] for row in rows]
    assert not any(row.messages for row in result.parsed)


@pytest.mark.extended
def test_sources_of_this_machine_have_no_marks_of_turns() -> None:
    """Code and pages of installed packages, which are about conversations at most in passing."""
    folders = [Path(str(files(name))) for name in ("pyarrow", "jinja2", "yaml", "numpy")]
    texts = dict[Path, str]()
    for folder in folders:
        for path in sorted(folder.rglob("*.py"))[:60]:
            texts[path] = path.read_text(encoding="utf-8")
    assert len(texts) > 100
    assert [path for path, text in texts.items() if find_mark(text)] == []


def test_each_row_is_held_to_what_most_of_the_first_rows_are(tmp_path: Path) -> None:
    chats = [{"text": rendered("jamba", number)[0]} for number in range(3)]
    texts = [{"text": f"A lamp is useful, number {number}."} for number in range(3)]
    mostly_chats = read(lines(tmp_path, [*chats, texts[0]]))
    assert [len(mostly_chats.parsed), len(mostly_chats.bad_rows)] == [3, 1]
    assert "format=texts" in str(mostly_chats.bad_rows[0].error)
    mostly_texts = read(lines(tmp_path, [*texts, chats[0]]))
    assert [len(mostly_texts.parsed), len(mostly_texts.bad_rows)] == [3, 1]


def test_rendered_conversations_are_read_in_other_columns_too(tmp_path: Path) -> None:
    text, contents = rendered("exaone", 0)
    prompt, _, _ = text.rpartition("[|assistant|]")
    row = {
        "prompt": f"{prompt}[|assistant|]",
        "chosen": contents[-1][1],
        "rejected": "No.[|endofturn|]",
    }
    [parsed] = read(lines(tmp_path, [row]), Purpose.preferences).parsed
    assert [(turn["role"], turn["content"]) for turn in parsed.messages] == contents[:-1]
    assert parsed.answers == [contents[-1][1], "No."]
