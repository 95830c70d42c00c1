#!/usr/bin/env python3
"""Writes the seed corpora of the fuzz targets of model files, under tests/fuzz/corpus/.

Needs gguf, safetensors and numpy. Seeds are small and valid, so that mutations reach deep into the
parsers; libFuzzer finds the invalid ones by itself.
"""

import argparse
import json
import pathlib

import gguf
import numpy as np
from safetensors.numpy import save_file

HIDDEN, INTERMEDIATE, VOCAB, HEADS, KV_HEADS, HEAD_DIM = 32, 32, 8, 2, 1, 8


def add_vocabulary(writer, model):
    """Eight tokens of a sentencepiece ("llama") or a byte-level BPE ("gpt2") vocabulary."""
    writer.add_tokenizer_model(model)
    if model == "llama":
        writer.add_token_list(["<unk>", "<s>", "</s>", "<0x61>", "▁", "a", "▁a", "b"])
        writer.add_token_scores([0.0, 0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0])
        writer.add_token_types([2, 3, 3, 6, 1, 1, 1, 1])
    else:
        writer.add_tokenizer_pre("llama-bpe")
        writer.add_token_list(["a", "b", "ab", "Ġ", "Ġa", "c", "<|begin|>", "<|end|>"])
        writer.add_token_types([1, 1, 1, 1, 1, 1, 3, 3])
        writer.add_token_merges(["a b", "Ġ a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)


def write_gguf(path, architecture, tokenizer, kind, linear):
    rng = np.random.default_rng(7)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_block_count(1)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    if linear:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(2.0)
    else:
        writer.add_tensor("rope_freqs.weight", np.ones(HEAD_DIM // 2, dtype=np.float32))
    add_vocabulary(writer, tokenizer)
    shapes = {
        "token_embd.weight": (VOCAB, HIDDEN),
        "blk.0.attn_norm.weight": (HIDDEN,),
        "blk.0.attn_q.weight": (HEADS * HEAD_DIM, HIDDEN),
        "blk.0.attn_k.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
    }
    for name, shape in shapes.items():
        values = rng.standard_normal(shape, dtype=np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_safetensors(folder):
    save_file(
        {"model.norm.weight": np.ones(4, dtype=np.float32)},
        folder / "one.safetensors",
        metadata={"format": "pt"},
    )
    save_file(
        {
            "a": np.zeros((2, 3), dtype=np.float16),
            "b": np.zeros((2, 2), dtype=np.int64),
            "c": np.zeros((0, 5), dtype=np.float32),
            "d": np.array(1, dtype=np.uint8),
        },
        folder / "types.safetensors",
    )
    weight_map = {
        "a": "model-00001-of-00002.safetensors",
        "b": "model-00002-of-00002.safetensors",
    }
    index = {"metadata": {"total_size": 24}, "weight_map": weight_map}
    (folder / "index.json").write_text(json.dumps(index))


def write_configs(folder):
    llama = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
    }
    llama3 = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    mistral = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    qwen2 = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    configs = {
        "llama": llama,
        "llama_linear": {**llama, "rope_scaling": {"type": "linear", "factor": 2.0}},
        "llama_llama3": {**llama, "rope_scaling": llama3, "head_dim": 32},
        "llama_parameters": {**llama, "rope_parameters": {**llama3, "rope_theta": 5e5}},
        "mistral": {**llama, **mistral, "sliding_window": None},
        "qwen2": {**llama, **qwen2, "use_sliding_window": False, "sliding_window": 128},
        "generation": {"eos_token_id": [2, 7], "temperature": 0.6},
    }
    for name, config in configs.items():
        (folder / f"{name}.json").write_text(json.dumps(config))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fuzz" / "corpus"
    parser.add_argument("--out", type=pathlib.Path, default=default)
    out = parser.parse_args().out
    folders = {name: out / name for name in ("gguf", "safetensors", "hf_config")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    kinds = gguf.GGMLQuantizationType
    write_gguf(folders["gguf"] / "llama_f32.gguf", "llama", "llama", kinds.F32, linear=False)
    write_gguf(folders["gguf"] / "llama_q8_0.gguf", "llama", "llama", kinds.Q8_0, linear=True)
    write_gguf(folders["gguf"] / "qwen2_q4_0.gguf", "qwen2", "gpt2", kinds.Q4_0, linear=True)
    write_safetensors(folders["safetensors"])
    write_configs(folders["hf_config"])


if __name__ == "__main__":
    main()
