"""vLLM's engine as a program for the sampler `vllm`: token ids in and out, as JSON lines over its pipes.

It runs under `sample.runtime.python`, so it imports nothing of this project. Its input is a job, then a request per
line. Its output is a line with the engine's versions, then a line for each finished request, in any order. Between
requests a line may name a folder with new weights; its answer is the sum of the bits that were loaded."""

import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

TYPES = {"fp32": "float32", "bf16": "bfloat16"}  # the precision's name in vLLM


def start_engine(job: dict[str, Any]) -> tuple[Any, dict[str, str]]:
    """Return the engine, and its versions, device and type of numbers."""
    import torch
    import transformers
    import vllm
    from vllm.platforms import current_platform

    options = {
        "model": job["model"],
        "dtype": TYPES[job["precision"]],
        "max_num_seqs": job["batch_size"],
        # the model's context, or as much of it as the memory for keys and values holds
        "max_model_len": -1,
        "tensor_parallel_size": job["tensor_parallel"],
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # not the model's own temperature and top_k
        "logprobs_mode": "raw_logprobs",  # at temperature 1
        "enable_prefix_caching": True,  # a prompt is read once for all its candidates
        "enforce_eager": current_platform.is_cpu(),  # compiling takes minutes there
        "enable_chunked_prefill": not current_platform.is_cpu(),  # there it fails with seeds
        **job["options"],
    }
    engine = vllm.LLM(**options).llm_engine
    versions = {each.__name__: str(each.__version__) for each in (vllm, torch, transformers)}
    return engine, versions | {
        "device": str(current_platform.device_type),
        "dtype": options["dtype"],
    }


def serve(job: dict[str, Any], engine: Any, lines: "queue.Queue[str]", channel: TextIO) -> None:
    """Answer requests until the input ends. New ones join those that the engine decodes."""
    from vllm import SamplingParams, TokensPrompt

    # the completions of each request, None where they are not finished
    unfinished = dict[str, list[Any]]()
    while True:
        while not (unfinished and lines.empty()):
            request = json.loads(lines.get())
            if "weights" in request:
                send(channel, {"bits": load_weights(engine, Path(request["weights"]))})
                continue
            unfinished[request["id"]] = [None] * len(request["draws"])
            for i, (temperature, seed) in enumerate(request["draws"]):
                drawing = {"temperature": 0.0}
                if temperature:
                    drawing = {"temperature": temperature, "top_p": job["top_p"], "seed": seed}
                params = SamplingParams(
                    max_tokens=job["max_new_tokens"],
                    stop_token_ids=job["stop_ids"],
                    ignore_eos=True,  # only stop_ids end an answer
                    logprobs=0,  # of the drawn token
                    detokenize=False,
                    **drawing,
                )
                prompt = TokensPrompt(prompt_token_ids=request["ids"])
                engine.add_request(f"{request['id']}/{i}", prompt, params)
        for output in engine.step():
            if output.finished:
                name, i = output.request_id.rsplit("/", 1)
                of_request = unfinished[name]
                of_request[int(i)] = read_output(output)
                if None not in of_request:
                    send(channel, {"id": name, "completions": unfinished.pop(name)})


def read_output(output: Any) -> tuple[list[int], str, float]:
    """Return the token ids of a finished output, why it ended, and the sum of the log-probs."""
    [drawn] = output.outputs
    ids = [*drawn.token_ids]
    logprobs = [
        by_token[token].logprob for token, by_token in zip(ids, drawn.logprobs, strict=True)
    ]
    return ids, drawn.finish_reason, sum(logprobs)


def load_weights(engine: Any, folder: Path) -> int:
    """Load the safetensors files of a folder into the running engine. Return the sum of the bits of all tensors, each
    element read as an integer, modulo 2^64."""
    import torch
    from safetensors import safe_open

    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = 0

    def tensors() -> Iterator[tuple[str, Any]]:
        nonlocal bits
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118  # it has no iterator
                    tensor = stored.get_tensor(name)
                    values = tensor.reshape(-1).view(integers[tensor.itemsize])
                    bits += int(values.sum(dtype=torch.int64))
                    yield name, tensor

    engine.collective_rpc("reload_weights", kwargs={"weights_iterator": tensors()})
    engine.apply_model(repack_output_layer)
    engine.reset_prefix_cache()  # its keys and values are of the earlier weights
    return bits % 2**64


def repack_output_layer(model: Any) -> None:
    """Pack the weights of the output layer again. vLLM's layers on a CPU read packed copies, and its reload leaves the
    copy of an output layer that is tied to the embedding as it was. On a GPU this does nothing."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)


def read_input(lines: "queue.Queue[str]") -> None:
    """Read all lines. When the input ends, end this process and those that it started: nobody reads the answers."""
    for line in sys.stdin:
        lines.put(line)
    os.killpg(0, signal.SIGKILL)


def send(channel: TextIO, message: dict[str, Any]) -> None:
    print(json.dumps(message), file=channel, flush=True)


def main() -> None:
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print: only messages may reach the output
    lines = queue.Queue[str]()
    threading.Thread(target=read_input, args=(lines,), daemon=True).start()
    try:
        job = json.loads(lines.get())
        engine, versions = start_engine(job)
        send(channel, versions)
        serve(job, engine, lines, channel)
    except Exception as error:
        traceback.print_exc()
        send(channel, {"error": f"{type(error).__name__}: {error}"})
        os._exit(1)  # the other thread still reads the input


if __name__ == "__main__":  # the engine's own processes import this file
    main()
