"""The templates that models bring: all that TRL ships, each with conversations of five kinds. The model's own form is
kept, and what is trained is what the model must write after the prompt as it is generated then."""

import re
from importlib.resources import files
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from stages.config.blocks.models import Template
from stages.models.chat_templates import establish_contract, replaced_message
from stages.models.contract import Contract
from stages.models.forms import golden_call
from stages.models.rendering import ContractError, undated
from stages.models.turns import Span, Stretch
from stages.store.records import Message
from stages.store.tool_calls import TOOLS

SHIPPED = Path(str(files("trl"))) / "chat_templates"
NAMES = sorted(path.stem for path in SHIPPED.glob("*.jinja") if not path.stem.endswith("_training"))
# Their prompt begins a thought, whatever it is told.
ALWAYS_THINK = {"deepseek_r1_distill", "deepseekv3"}
NEVER_THINK = {"qwen3_5_nothink"}  # it writes an empty thought before every answer
ENDS = [
    "<|return|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end|>",
    "<｜end▁of▁sentence｜>",
    "<|END_OF_TURN_TOKEN|>",
    "<|return|>",
    "<end_of_utterance>",
    "<|eot|>",
    "<SPECIAL_12>",
    "</s>",
    "<|endoftext|>",
    "<|user|>",
]
PLAIN_MARKS = (
    r"<\|[^|<>\s']{1,40}\|>|<｜[^｜<>]{1,40}｜>|</?s>|<(?:start|end)_of_[a-z]+>|<turn\|>|<\|turn>|\[gMASK\]|<sop>"
    r"|<SPECIAL_\d+>|\[/?INST\]|<BOS_TOKEN>"
)
TOOL_MARKS = (
    r"<\|(?:tool|tool_call|tool_response|channel)>|<(?:tool|tool_call|tool_response|channel)\|>"
)
SPECIAL = f"{PLAIN_MARKS}|{TOOL_MARKS}"


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


TURN = [user("Name a colour."), assistant("Blue.")]
TURNS = [*TURN, user("Another?\n"), assistant("- ja, 日本")]
SYSTEM: list[Message] = [{"role": "system", "content": "Be brief."}, *TURNS]
THOUGHT = [user("2 + 2?"), assistant("<think>\nTwo and two.\n</think>\n\nIt is 4.")]


def tokenizer_of(template: str, marks: str = SPECIAL) -> PreTrainedTokenizerFast:
    """Return a small byte-level tokenizer that has those `marks` as special tokens which a template writes."""
    special = sorted({*re.findall(marks, template), "<bos>", "<eos>"})
    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"\s*[\r\n]+|\s+(?!\S)|\s?\S+"), "isolated")
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pieces])
    backend.decoder = decoders.ByteLevel()
    text = ["Name a colour. Blue. Be brief. 2 + 2? user assistant system model think\n\n"] * 3
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet)
    backend.train_from_iterator(text, trainer)
    bos = "<bos>" if "bos_token" in template else None
    end = next((end for end in ENDS if end in template), "<eos>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, bos_token=bos)
    tokenizer.chat_template = template
    return tokenizer


def establish(
    name: str, train: bool = True, thinks: bool = False, marks: str = SPECIAL
) -> Contract:
    template = (SHIPPED / f"{name}.jinja").read_text()
    tokenizer = tokenizer_of(template, marks)
    stops = [tokenizer.eos_token_id]
    if name == "glm4moe":
        stops = tokenizer.convert_tokens_to_ids(["<|user|>", "<|observation|>"])
    cfg = Template("auto", True)
    contract = establish_contract(tokenizer, cfg, train, len(tokenizer) + 64, stops, thinks)
    assert contract.tokenizer.chat_template.endswith(undated(template)), "its own form is kept"
    return contract


def require_what_the_model_must_write(contract: Contract, messages: list[Message]) -> None:
    """Of every stretch and answer: the prompt is transformers' own at that point, and the answer is all that follows."""
    seen = list[int]()
    for stretch in contract.stretches(messages):
        for turn, start, end in stretch.answers:
            prompt = contract.tokenizer.apply_chat_template(
                **contract.form.of(messages[:turn]), add_generation_prompt=True, return_dict=False
            )
            assert stretch.ids[:start] == prompt
            written = contract.tokenizer.decode(stretch.ids[start:end])
            assert messages[turn]["content"] in written
            assert contract.text(stretch.ids[start:end]).strip() == messages[turn]["content"]
            assert stretch.ids[end - 1] in contract.stop_ids
            assert not any(i in contract.stop_ids for i in stretch.ids[start : end - 1])
            seen.append(turn)
        assert sum(stretch.trained()) == sum(end - start for _, start, end in stretch.answers)
    assert seen == [i for i, message in enumerate(messages) if message["role"] == "assistant"]


@pytest.mark.parametrize("name", NAMES)
def test_a_models_own_form_is_trained_as_it_is_generated(name: str) -> None:
    if name in ALWAYS_THINK:
        with pytest.raises(
            ContractError, match=r"begins a thought.* answers with thoughts.* template=\w+"
        ):
            establish(name)
        return
    contract = establish(name)
    for messages in (TURN, TURNS, SYSTEM):
        require_what_the_model_must_write(contract, messages)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_is_not_trained_here_keeps_its_form(name: str) -> None:
    contract = establish(name, train=False)
    prompt = contract.tokenizer.decode(contract.prompt(TURN[:1]))
    assert TURN[0]["content"] in prompt
    assert contract.golden()[0]["prompt"]


CALL = '<tool_call>\n{"name": "stock", "arguments": {"item": "tea"}}\n</tool_call>'
RESULT: Message = {"role": "tool", "content": "417 left"}
EPISODE = [user("How many?"), assistant(CALL), RESULT, assistant("Seven.")]
FURTHER = [*EPISODE, user("And now?"), assistant("Eight.")]
NO_THOUGHTS_BEFORE_ANSWERS = {"gemma4", "gemma4_v3", "gemma4_v4"}  # before calls alone


def with_thoughts(messages: list[Message], thinks: bool) -> list[Message]:
    thought = "<think>\nHm.\n</think>\n\n" * thinks
    return [
        assistant(thought + message["content"]) if message["role"] == "assistant" else message
        for message in messages
    ]


@pytest.mark.parametrize("thinks", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_calls_and_results_of_tools_go_through_a_models_own_form(name: str, thinks: bool) -> None:
    refused = ALWAYS_THINK | (NEVER_THINK | NO_THOUGHTS_BEFORE_ANSWERS if thinks else set())
    if name in refused:
        with pytest.raises(ContractError, match=r"template"):
            establish(name, thinks=thinks).stretches(with_thoughts(EPISODE, thinks))
        return
    contract = establish(name, thinks=thinks)
    for plain in (EPISODE, FURTHER):
        messages = with_thoughts(plain, thinks)
        stretches = contract.stretches(messages)
        for stretch, (turn, start, end) in spans_of(stretches):
            assert stretch.ids[:start] == contract.prompt(messages[:turn])
            written = contract.tokenizer.decode(stretch.ids[start:end])
            parts = ["stock", "tea"] if turn == 1 else [plain[turn]["content"]]
            places = [written.index(part) for part in ["Hm."] * thinks + parts]
            assert places == sorted(places)
            assert stretch.ids[end - 1] in contract.stop_ids
            assert not any(i in contract.stop_ids for i in stretch.ids[start : end - 1])
        assert "417 left" in contract.tokenizer.decode(stretches[-1].ids)
        answered = [turn for _, (turn, *_) in spans_of(stretches)]
        assert answered == [i for i, turn in enumerate(plain) if turn["role"] == "assistant"]


def spans_of(stretches: list[Stretch]) -> list[tuple[Stretch, Span]]:
    return [(stretch, span) for stretch in stretches for span in stretch.answers]


def test_a_call_that_ends_a_conversation_ends_as_calls_do() -> None:
    ends = {"glm4moe": "<|observation|>", "gptoss": "<|call|>", "gemma4_v5": "<|tool_response>"}
    for name, end in ends.items():
        contract = establish(name)
        ids, _ = contract.example(EPISODE[:2])
        assert contract.tokenizer.decode(ids[-1:]) == end
        assert ids[-1] in contract.stop_ids


@pytest.mark.parametrize("name", ["gemma4_v3", "gemma4_v5"])
def test_a_call_is_trained_up_to_a_mark_that_is_no_token_of_its_own(name: str) -> None:
    """A vocabulary may write the response mark in pieces."""
    contract = establish(name, marks=PLAIN_MARKS)
    for messages in (golden_call(thinks=False), golden_call(thinks=False)[:3]):
        written = [
            contract.tokenizer.decode(stretch.ids[span.start : span.end])
            for stretch, span in spans_of(contract.stretches(messages))
        ]
        assert written[0].endswith("<|tool_response>") and "stock" in written[0]
        assert written[1:] in ([], ["Many.<turn|>"])


def test_tools_are_described_in_a_models_own_form_unless_the_row_says_how_they_are_called() -> None:
    contract = establish("llama3_1")
    tool = '{"name": "stock", "description": "Count an item.", "parameters": {"type": "object"}}'
    described: Message = {"role": "system", "content": TOOLS.format(tool)}
    own: Message = {"role": "system", "content": f"Write {CALL} to call a tool."}
    for system, as_text in ((described, False), (own, True)):
        prompt = contract.tokenizer.decode(contract.prompt([system, EPISODE[0]]))
        written = contract.tokenizer.decode(contract.example([system, *EPISODE[:2]])[0])
        assert ("Respond in the format" in prompt) != as_text
        assert ("<tools>" in prompt) is False
        assert (CALL in written.removeprefix(prompt)) == as_text


def test_turns_without_a_role_are_merged_or_dropped() -> None:
    contract = establish("gemma")
    ids, _ = contract.example(SYSTEM)
    assert "Be brief.\n\nName a colour." in contract.tokenizer.decode(ids)
    assert contract.form.merges(SYSTEM) and not contract.form.merges(TURN)
    tokenizer = tokenizer_of((SHIPPED / "gemma.jinja").read_text())
    cfg = Template("auto", True, roles="drop")
    strict = establish_contract(tokenizer, cfg, True, len(tokenizer) + 64)
    assert strict.example(TURN) == contract.example(TURN)
    with pytest.raises(ContractError):
        strict.example(SYSTEM)


def test_a_turn_that_a_template_leaves_out_costs_the_row() -> None:
    template = (SHIPPED / "phi3.jinja").read_text()
    tokenizer = tokenizer_of(template)
    cfg = Template("auto", True, roles="drop")
    contract = establish_contract(tokenizer, cfg, True, len(tokenizer) + 64)
    with pytest.raises(ContractError, match="leaves out '417 left'"):
        contract.example(EPISODE)


@pytest.mark.parametrize("name", NAMES)
def test_thoughts_are_trained_where_the_data_has_them(name: str) -> None:
    if name in NEVER_THINK:
        with pytest.raises(ContractError, match=r"template=\w+"):
            establish(name, thinks=True)
        return
    contract = establish(name, thinks=True)
    [stretch] = contract.stretches(THOUGHT)
    [(_, start, end)] = stretch.answers
    assert stretch.ids[:start] == contract.prompt(THOUGHT[:1])
    written = contract.tokenizer.decode(stretch.ids[start:end])
    both = contract.tokenizer.decode(stretch.ids)
    assert re.search(r"Two and two\.[^.]*It is 4\.", written)
    assert both.count("<think>") <= 1, "the thought begins once, in the prompt or in the answer"
    if name in ALWAYS_THINK | {"glm4moe", "qwen3", "qwen3_5_think", "nemotron_3_nano"}:
        with pytest.raises(ContractError, match="thought"):
            contract.stretches(TURN)


def test_an_argument_that_is_typed_is_kept_and_one_that_no_template_reads_is_refused() -> None:
    template = (SHIPPED / "qwen3.jinja").read_text()
    for arguments, expected in (({"enable_thinking": True}, ""), ({}, "<think>\n\n</think>")):
        tokenizer = tokenizer_of(template)
        cfg = Template("auto", True, arguments=arguments)
        contract = establish_contract(tokenizer, cfg, False, len(tokenizer) + 64)
        prompt = contract.tokenizer.decode(contract.prompt(TURN[:1]))
        assert prompt.removesuffix("\n\n").endswith(expected or "assistant\n")
    with pytest.raises(ContractError, match="reads no 'enable_thinkin'"):
        cfg = Template("auto", True, arguments={"enable_thinkin": True})
        establish_contract(tokenizer_of(template), cfg, True, 1000)


def test_a_template_that_is_replaced_is_told_with_both_forms() -> None:
    own = (SHIPPED / "qwen2_5.jinja").read_text()
    for kind, both in (("plain", True), ("auto", False)):
        tokenizer = tokenizer_of(own)
        cfg = Template(kind, True)
        contract = establish_contract(tokenizer, cfg, True, len(tokenizer) + 64)
        sentence = replaced_message(contract, own, kind)
        assert (
            ("<|im_start|>user" in sentence and "### User:" in sentence) == both == bool(sentence)
        )


def test_a_thought_in_the_marks_of_the_models_own_tokens_is_no_control_token() -> None:
    contract = establish("gemma4_v5", thinks=True)
    thought = "<|channel>thought\nTwo and two.\n<channel|>It is 4."
    ids, trained = contract.example([THOUGHT[0], assistant(thought)])
    written = contract.tokenizer.decode([i for i, t in zip(ids, trained, strict=True) if t])
    assert written == f"{thought}<turn|>"


def test_a_thought_that_the_prompt_begins_is_begun_once() -> None:
    """A template of one's own that opens a thought before every answer, and knows nothing of its marks."""
    tokenizer = tokenizer_of((SHIPPED / "qwen2_5.jinja").read_text())
    begin = "<|im_start|>assistant\n<think>\n"
    tokenizer.chat_template = (
        f"{{%- set begin = '{begin}' -%}}"
        "{%- for m in messages -%}{%- if m.role == 'assistant' -%}{{ begin ~ m.content ~ '<|im_end|>\n' }}"
        "{%- else -%}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ begin }}{%- endif -%}"
    )
    template = Template("auto", True)
    contract = establish_contract(tokenizer, template, True, len(tokenizer) + 64, thinks=True)
    ids, trained = contract.example(THOUGHT)
    written = contract.tokenizer.decode([i for i, t in zip(ids, trained, strict=True) if t])
    assert written == "Two and two.\n</think>\n\nIt is 4.<|im_end|>"
    assert contract.tokenizer.decode(ids).count("<think>") == 1


def test_a_description_of_tools_that_is_no_json_stays_text() -> None:
    contract = establish("qwen2_5")
    system: Message = {"role": "system", "content": TOOLS.format("stock: counts an item")}
    prompt = contract.tokenizer.decode(contract.prompt([system, EPISODE[0]]))
    assert "stock: counts an item" in prompt
