#!/usr/bin/env python3
"""Makes the tiny random checkpoints and golden logits under tests/golden/.

Needs torch, transformers, safetensors, gguf and numpy. The logits are Hugging Face transformers'
in fp32 (eager attention). For a GGUF file they are computed on the dequantised weights, so a test
compares the forward pass and the block layouts, never the loss of quantisation.

Everything is drawn from a fixed seed. The script refuses to write a fixture that could not catch
a mistake: logits must have a standard deviation of at least 1, the fp32 reference must agree with
an fp64 run, and leaving out the rope scaling or the bias must miss by 100 times the tolerance.
"""

import argparse
import copy
import json
import pathlib
import shutil

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as Q
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file as save_torch

TOLERANCE = 1e-4
NUM_SEQUENCES = 2
SEQUENCE_TOKENS = 56
# The first tokens, both sides of a 16-slot page boundary, and the last token.
POSITIONS = [0, 1, 15, 16, 17, 31, 47, 55]

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 48,
}


def base_config(**changes):
    """A config.json. `rope_scaling` and `rope_theta` are the spelling before transformers 5."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 256,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }
    config.update(changes)
    return {key: value for key, value in config.items() if value is not None}


# name -> (config.json, number of safetensors shards, GGUF element types to write)
CHECKPOINTS = {
    "llama-mha": (base_config(), 1, []),
    "llama-gqa3-tied": (
        base_config(
            hidden_size=48,
            num_attention_heads=6,
            num_key_value_heads=2,
            intermediate_size=80,
            tie_word_embeddings=True,
        ),
        1,
        [Q.F32, Q.BF16],
    ),
    "llama-gqa4-llama3": (
        base_config(
            num_attention_heads=8, num_key_value_heads=2, rope_scaling=LLAMA3, vocab_size=288
        ),
        1,
        [Q.F16, Q.Q4_1],
    ),
    "llama-gqa8-linear": (
        base_config(
            num_attention_heads=16,
            num_key_value_heads=2,
            head_dim=8,
            rope_scaling={"type": "linear", "factor": 4.0},
        ),
        1,
        [Q.Q8_0],
    ),
    "llama-head64-llama3": (
        base_config(
            hidden_size=48,
            num_hidden_layers=3,
            intermediate_size=64,
            num_attention_heads=3,
            num_key_value_heads=1,
            head_dim=64,
            tie_word_embeddings=True,
            rope_theta=None,
            torch_dtype=None,
            dtype="bfloat16",
            rope_parameters={**LLAMA3, "rope_theta": 100000.0},
        ),
        1,
        [],
    ),
    "mistral-sharded": (
        base_config(
            architectures=["MistralForCausalLM"],
            model_type="mistral",
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=32,
            hidden_size=32,
            torch_dtype="float32",
        ),
        2,
        [Q.Q4_0],
    ),
    "qwen2-bias": (
        base_config(
            architectures=["Qwen2ForCausalLM"],
            model_type="qwen2",
            num_key_value_heads=2,
            rope_theta=1000000.0,
            rms_norm_eps=1e-6,
            tie_word_embeddings=True,
            use_sliding_window=False,
            sliding_window=4096,
        ),
        1,
        [Q.Q8_0],
    ),
    # K-quants have blocks of 256, so this one is wide; it exists as GGUF only.
    "llama-kquant": (
        base_config(
            hidden_size=512,
            intermediate_size=32,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=16,
            vocab_size=192,
            tie_word_embeddings=True,
        ),
        0,
        [Q.Q4_K],
    ),
}


def random_weights(model, generator):
    """Weights that spread attention over many positions and give logits of a standard deviation
    of about 2; norms and biases differ from what an omission would leave (1 and 0)."""
    state = {}
    for name, tensor in model.state_dict().items():
        draw = torch.randn(tensor.shape, generator=generator)
        if name.endswith("layernorm.weight") or name == "model.norm.weight":
            state[name] = 1 + 0.2 * draw
        elif name.endswith(".bias"):
            state[name] = 0.5 * draw
        elif name == "model.embed_tokens.weight":
            # Tied: this is the output projection as well, whose gain is 2 / sqrt(hidden).
            tied = model.config.tie_word_embeddings
            state[name] = draw * (2 / tensor.shape[1] ** 0.5 if tied else 1.0)
        elif name == "lm_head.weight":
            state[name] = draw * 2 / tensor.shape[1] ** 0.5
        elif "q_proj" in name or "k_proj" in name:
            state[name] = draw * 1.3 / tensor.shape[1] ** 0.5
        else:
            state[name] = draw / tensor.shape[1] ** 0.5
    if model.config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    return state


def logits_of(config, state, token_ids, dtype=torch.float32):
    """Logits [sequences, positions, vocab] of transformers' model with these weights."""
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=dtype, attn_implementation="eager"
    )
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in state.items()})
    model.eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(token_ids).long()).logits
    return logits[:, POSITIONS].contiguous()


def inv_freq_of(config):
    """The rotation frequencies [head_dim / 2] that transformers computes for this config."""
    rotary = transformers.AutoModel.from_config(config).rotary_emb
    assert rotary.attention_scaling == 1
    return rotary.inv_freq.float().numpy()


def ablations(config_json, state):
    """Pairs (what is left out, config, weights): mistakes that the goldens must show."""
    for key in ("rope_scaling", "rope_parameters"):
        if key in config_json:
            plain = copy.deepcopy(config_json)
            plain["rope_theta"] = plain[key].get("rope_theta", plain.get("rope_theta"))
            del plain[key]
            yield "rope scaling", plain, state
    biases = [name for name in state if name.endswith(".bias")]
    if biases:
        without = {name: t * 0 if name in biases else t for name, t in state.items()}
        yield "bias", config_json, without


def write_goldens(path, config_json, state, token_ids):
    config = load_config(config_json)
    logits = logits_of(config, state, token_ids)
    spread = logits.std().item()
    reference_error = (logits - logits_of(config, state, token_ids, torch.float64)).abs().max()
    assert spread >= 1, f"{path}: logits have a standard deviation of {spread}"
    assert reference_error < TOLERANCE / 5, f"{path}: fp32 is {reference_error} from fp64"
    report = [f"std {spread:.2f}", f"fp32-fp64 {reference_error:.1e}"]
    for omission, other_json, other_state in ablations(config_json, state):
        miss = (logits - logits_of(load_config(other_json), other_state, token_ids)).abs().max()
        assert miss >= 100 * TOLERANCE, f"{path}: without {omission} it misses by only {miss}"
        report.append(f"without {omission} {miss:.2f}")
    save_numpy(
        {
            "token_ids": token_ids,
            "positions": np.array(POSITIONS, dtype=np.int32),
            "logits": logits.numpy(),
            "inv_freq": inv_freq_of(config),
        },
        path,
    )
    print(f"  {path.name}: {', '.join(report)}")


def load_config(config_json):
    config_json = copy.deepcopy(config_json)
    return transformers.AutoConfig.for_model(config_json.pop("model_type"), **config_json)


def write_safetensors(folder, state, shards, dtype):
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in state.items()}
    if shards == 1:
        save_torch(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(tensors)
    index = {"metadata": {}, "weight_map": {}}
    for shard in range(shards):
        file_name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        save_torch(part, folder / file_name, metadata={"format": "pt"})
        index["weight_map"].update(dict.fromkeys(part, file_name))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


# --- GGUF ---------------------------------------------------------------------------------------

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name):
    stem, suffix = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, layer, rest = stem.split(".", 3)
        return f"blk.{layer}.{GGUF_NAMES[rest]}.{suffix}"
    return f"{GGUF_NAMES[stem]}.{suffix}"


def permute_rows(weight, heads):
    """The order in which GGUF files of architecture "llama" store the rows of Q and K: the halves
    of each head interleaved, so that rotated pairs are neighbours."""
    shape = weight.shape
    return weight.reshape(heads, 2, shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(shape)


def unpermute_rows(weight, heads):
    shape = weight.shape
    return weight.reshape(heads, shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(shape)


def random_k_blocks(rows, cols, kind, std, rng):
    """Random valid blocks of Q4_K or Q6_K, uint8 [rows, bytes], with values of about `std`. Every
    bit of every field is used, which a quantiser's output would not promise."""
    count = rows * cols // 256
    if kind == Q.Q4_K:  # d, dmin, 12 bytes of packed scales and mins, 128 bytes of nibbles
        packed = rng.integers(0, 256, (count, 12 + 128), dtype=np.uint8)
        d = (std * rng.uniform(0.8, 1.2, (count, 1)) / 255).astype(np.float16)
        dmin = (7.5 * d.astype(np.float32)).astype(np.float16)
        parts = [d.view(np.uint8), dmin.view(np.uint8), packed]
    else:  # Q6_K: 128 bytes of low bits, 64 of high bits, 16 signed scales, d
        packed = rng.integers(0, 256, (count, 128 + 64 + 16), dtype=np.uint8)
        d = (std * rng.uniform(0.8, 1.2, (count, 1)) / 1366).astype(np.float16)
        parts = [packed, d.view(np.uint8)]
    return np.concatenate(parts, axis=1).reshape(rows, -1)


def gguf_tensor(name, weight, kind, rng):
    """(stored array, element type, the values that it stands for)."""
    cols = weight.shape[-1]
    if weight.ndim == 1:
        return weight, Q.F32, weight
    if kind == Q.Q4_K:
        # As llama.cpp's mixes: the embedding and V in Q6_K; narrow rows fall back to small blocks.
        if cols % 256 != 0:
            kind = Q.Q4_0 if "attn_output" in name else Q.Q8_0
        else:
            kind = Q.Q6_K if "token_embd" in name or "attn_v" in name else Q.Q4_K
            stored = random_k_blocks(weight.shape[0], cols, kind, weight.std(), rng)
            return stored, kind, gguf.quants.dequantize(stored, kind)
    elif cols % gguf.GGML_QUANT_SIZES[kind][0] != 0:
        kind = Q.F16
    if kind == Q.F32:
        return weight, kind, weight
    stored = gguf.quants.quantize(weight, kind)
    return stored, kind, gguf.quants.dequantize(stored, kind).reshape(weight.shape)


def llama3_factors(config_json, head_dim):
    """What each rotation frequency is divided by, as GGUF files carry it in rope_freqs.weight."""
    scaling = config_json.get("rope_scaling") or config_json["rope_parameters"]
    theta = config_json.get("rope_theta") or scaling["rope_theta"]
    low = scaling["original_max_position_embeddings"] / scaling["low_freq_factor"]
    high = scaling["original_max_position_embeddings"] / scaling["high_freq_factor"]
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * np.pi * theta ** (i / head_dim)
        if wavelength < high:
            factors.append(1.0)
        elif wavelength > low:
            factors.append(scaling["factor"])
        else:
            smooth = (low / wavelength * scaling["low_freq_factor"] - scaling["low_freq_factor"]) / (
                scaling["high_freq_factor"] - scaling["low_freq_factor"]
            )
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


def write_gguf(path, config_json, state, kind, rng):
    """Writes the file; returns the weights that it stands for, under their Hugging Face names."""
    architecture = "qwen2" if config_json["model_type"] == "qwen2" else "llama"
    heads = config_json["num_attention_heads"]
    kv_heads = config_json["num_key_value_heads"]
    head_dim = config_json.get("head_dim", config_json["hidden_size"] // heads)
    scaling = config_json.get("rope_scaling") or config_json.get("rope_parameters") or {}

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(path.parent.name)
    writer.add_context_length(config_json["max_position_embeddings"])
    writer.add_embedding_length(config_json["hidden_size"])
    writer.add_feed_forward_length(config_json["intermediate_size"])
    writer.add_block_count(config_json["num_hidden_layers"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config_json.get("rope_theta") or scaling["rope_theta"])
    writer.add_layer_norm_rms_eps(config_json["rms_norm_eps"])
    writer.add_bos_token_id(config_json["bos_token_id"])
    writer.add_eos_token_id(config_json["eos_token_id"])
    rope_kind = scaling.get("rope_type", scaling.get("type"))
    if rope_kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])
    if rope_kind == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(config_json, head_dim))

    meant = {}
    for name, tensor in state.items():
        if name == "lm_head.weight" and config_json["tie_word_embeddings"]:
            continue
        weight = tensor.float().numpy()
        rope_heads = {"q_proj": heads, "k_proj": kv_heads}.get(name.split(".")[-2])
        permuted = architecture == "llama" and rope_heads is not None
        if permuted:
            weight = permute_rows(weight, rope_heads)
        stored, stored_kind, values = gguf_tensor(gguf_name(name), weight, kind, rng)
        writer.add_tensor(gguf_name(name), stored, raw_dtype=stored_kind)
        meant[name] = torch.from_numpy(
            np.ascontiguousarray(unpermute_rows(values, rope_heads) if permuted else values)
        )
    if config_json["tie_word_embeddings"]:
        meant["lm_head.weight"] = meant["model.embed_tokens.weight"]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


# --- Fixtures -----------------------------------------------------------------------------------


def make_checkpoint(folder, config_json, shards, gguf_kinds, seed):
    print(folder.name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    config = load_config(config_json)
    dtype = getattr(torch, config_json.get("torch_dtype") or config_json["dtype"])
    state = random_weights(transformers.AutoModelForCausalLM.from_config(config), generator)
    state = {name: tensor.to(dtype).float() for name, tensor in state.items()}
    token_ids = rng.integers(
        0, config_json["vocab_size"], (NUM_SEQUENCES, SEQUENCE_TOKENS), dtype=np.int32
    )

    if shards > 0:
        (folder / "config.json").write_text(json.dumps(config_json, indent=1) + "\n")
        stored = dict(state)
        if config_json["tie_word_embeddings"]:
            del stored["lm_head.weight"]
        write_safetensors(folder, stored, shards, dtype)
        write_goldens(folder / "goldens.safetensors", config_json, state, token_ids)
    for kind in gguf_kinds:
        stem = f"model-{kind.name.lower()}"
        meant = write_gguf(folder / f"{stem}.gguf", config_json, state, kind, rng)
        write_goldens(folder / f"{stem}.goldens.safetensors", config_json, meant, token_ids)


def make_quant_goldens(folder, seed):
    """Random blocks of each type and their values by the gguf package's own dequantiser."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for kind in (Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q4_K, Q.Q6_K):
        if kind in (Q.Q4_K, Q.Q6_K):
            blocks = random_k_blocks(2, 512, kind, 1.0, rng)
        else:
            values = rng.standard_normal((4, 96), dtype=np.float32) * 3
            blocks = gguf.quants.quantize(values, kind)
        blocks = np.ascontiguousarray(blocks).view(np.uint8)
        expected = gguf.quants.dequantize(blocks, kind).astype(np.float32)
        assert np.isfinite(expected).all()
        save_numpy(
            {"blocks": blocks, "values": expected}, folder / f"{kind.name.lower()}.safetensors"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden"
    parser.add_argument("--out", type=pathlib.Path, default=default, help="default: tests/golden")
    parser.add_argument("--only", choices=sorted(CHECKPOINTS), help="make this checkpoint alone")
    args = parser.parse_args()
    for seed, (name, (config_json, shards, kinds)) in enumerate(CHECKPOINTS.items()):
        if args.only in (None, name):
            make_checkpoint(args.out / "tiny" / name, config_json, shards, kinds, seed)
    if args.only is None:
        make_quant_goldens(args.out / "quant", seed=100)


if __name__ == "__main__":
    main()
