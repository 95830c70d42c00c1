#!/usr/bin/env python3
"""Makes tests/golden/tokenizer: a multilingual corpus, small tokenizers trained on it, and the ids
that the reference tokenizers give for every line.

The corpus comes from texts that packages carry (sources and licences: the README beside it) and
from generated lines. References: Hugging Face tokenizers, transformers (chat templates) and
sentencepiece. Needs: pip install tokenizers transformers sentencepiece protobuf gguf.

  make_tokenizer_corpus.py                      everything
  make_tokenizer_corpus.py --keep-corpus        new tokenizers and references for the present corpus
  make_tokenizer_corpus.py --demo-model F.gguf  also the reference of the demo model's vocabulary
"""

import argparse
import ast
import gettext
import glob
import io
import json
import pathlib
import random
import re
import sysconfig
import unicodedata

import gguf
import sentencepiece
import tokenizers
import transformers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "tokenizer"
SEED = 20260
SPACE_SYMBOL = "\u2581"  # sentencepiece reads it as a space: tested apart
FULL_IDS_EVERY = 16  # other lines of a reference carry a hash only

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2_PATTERN = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)

# Chat templates of the known formats, written for this file.
CHATML_WITH_DEFAULT = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful gardener\\'s assistant<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3_TEMPLATE = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
LLAMA31_TEMPLATE = (
    "{{- bos_token }}{%- set date_string = \"26 Jul 2024\" %}"
    "{%- if messages[0]['role'] == 'system' %}"
    "{%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}"
    "{%- else %}{%- set system_message = \"\" %}{%- endif %}"
    "{{- \"<|start_header_id|>system<|end_header_id|>\\n\\n\" }}"
    "{{- \"Cutting Knowledge Date: December 2023\\n\" }}"
    "{{- \"Today Date: \" + date_string + \"\\n\\n\" }}{{- system_message }}{{- \"<|eot_id|>\" }}"
    "{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)


# ---------------------------------------------------------------- corpus


def sample(rng, lines, count):
    lines = sorted({line for line in lines if 0 < len(line.encode()) <= 160})
    return rng.sample(lines, min(count, len(lines)))


def licence_lines():
    for name in ("Apache-2.0", "BSD", "CC0-1.0", "MPL-2.0"):
        yield from pathlib.Path("/usr/share/common-licenses", name).read_text().splitlines()


def translations(language):
    for domain in ("psql-15", "postgres-15", "xkeyboard-config"):
        for path in glob.glob(f"/usr/share/locale/{language}/LC_MESSAGES/{domain}.mo"):
            with open(path, "rb") as file:
                catalog = gettext.GNUTranslations(file)._catalog
            yield from (text for key, text in catalog.items() if key and isinstance(text, str))


def locale_names(locale):
    """Names of days and months, and the words for yes and no, of a C library locale."""
    path = pathlib.Path("/usr/share/i18n/locales", locale)
    text = re.sub(r"/\s*\n\s*", "", path.read_text(encoding="utf-8", errors="replace"))
    for key in ("abday", "day", "abmon", "mon", "yesstr", "nostr", "lang_name", "country_name"):
        match = re.search(rf"^{key}\s+(.*)$", text, re.MULTILINE)
        if match:
            words = re.findall(r'"([^"]*)"', match.group(1))
            decode = lambda m: chr(int(m.group(1), 16))
            yield " ".join(re.sub(r"<U([0-9A-Fa-f]{4,8})>", decode, word) for word in words)


def code_blocks(rng, count):
    """Functions of Python's standard library, indented and with line ends, and single lines."""
    folder = pathlib.Path(sysconfig.get_paths()["stdlib"])
    for name in ("heapq.py", "bisect.py", "json/decoder.py", "textwrap.py", "fractions.py"):
        source = (folder / name).read_text()
        blocks = [ast.get_source_segment(source, node) for node in ast.walk(ast.parse(source))
                  if isinstance(node, ast.FunctionDef)]
        yield from sample(rng, [block[:150] for block in blocks], count // 10)
        yield from sample(rng, source.splitlines(), count // 10)


def generated_lines(rng):
    spaces = [" ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u2003", "\u180e", "\u200b", "\x0b",
              "\x0c", "\u0085", "\u2028"]
    words = ["a", "The", "don't", "I'LL", "we'Ve", "x1", "42", "1234567", "3.14", "é", "e\u0301",
             "日本", "!?", "--", "_", "ΣΑΣ", "'ſ", "½", "Ⅷ", "٣", "ﬁ", "\u0f71\u0f72"]
    for _ in range(220):
        parts = []
        for _ in range(rng.randrange(1, 9)):
            parts.append(rng.choice(words))
            parts.append(rng.choice(spaces) * rng.choice([0, 1, 1, 1, 2, 3, 7]))
        rng.shuffle(parts)
        yield "".join(parts)
    emoji = ["😀", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "1️⃣", "🧑🏿‍🚀", "❤️", "🫠", "☃"]
    for _ in range(120):
        yield rng.choice(["", "ok ", "\n"]).join(rng.choice(emoji) for _ in range(rng.randrange(1, 7)))
    for _ in range(160):  # names of characters with the character
        char = chr(rng.choice([rng.randrange(0xA1, 0x3000), rng.randrange(0x3000, 0xD800),
                               rng.randrange(0x1F300, 0x1FAFF), rng.randrange(0x10000, 0x12000)]))
        if unicodedata.name(char, ""):
            yield f"{char} {unicodedata.name(char)}"
    for _ in range(120):  # combining marks in and out of canonical order
        marks = "".join(chr(rng.randrange(0x300, 0x345)) for _ in range(rng.randrange(1, 5)))
        yield rng.choice("aeoA한") + marks + rng.choice(["", "n\u0303", "\u1100\u1161\u11a8", "Å"])
    for _ in range(60):
        yield "".join(chr(rng.randrange(1, 0x80)) for _ in range(rng.randrange(1, 24)))
    yield from (" " * n for n in (1, 2, 3, 4, 8, 17, 64))
    yield from ("\n" * n for n in (1, 2, 3, 9))
    yield from ("a" * 150, "ab" * 75, "." * 100, "=" * 80, "\t" * 20, "0" * 50, "", "�", "\x00")
    yield from ("<|im_start|>user", "<|im_end|>", "<|eot_id|>", "<|begin_of_text|>x", "<s>a</s>",
                "<unk>", "<0x41>", "<tool_call>{}</tool_call>", "x<tool_call", "<|im_end|><tool_call>",
                "<pad>", "[USR]hi[USR]")


def make_corpus():
    rng = random.Random(SEED)
    lines = sample(rng, licence_lines(), 260)
    for language in ("cs", "de", "el", "es", "fr", "he", "it", "ja", "ka", "ko", "pl", "pt_BR", "ru",
                     "sv", "tr", "uk", "vi", "zh_CN", "zh_TW"):
        lines += sample(rng, translations(language), 65)
    for locale in ("am_ET", "ar_EG", "bn_BD", "fa_IR", "hi_IN", "hy_AM", "km_KH", "lo_LA", "ml_IN",
                   "mn_MN", "my_MM", "ne_NP", "pa_IN", "ps_AF", "si_LK", "ta_IN", "te_IN", "th_TH",
                   "ur_PK", "yi_US"):
        lines += list(locale_names(locale))
    lines += list(code_blocks(rng, 250))
    lines += list(generated_lines(rng))
    lines = [line for line in lines if SPACE_SYMBOL not in line]
    rng.shuffle(lines)
    return lines


# ---------------------------------------------------------------- references


def fnv1a(ids):
    value = 0xCBF29CE484222325
    for token in ids:
        for byte in int(token).to_bytes(4, "little"):
            value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def write_reference(name, lines, encode, encode_root=None):
    """Each line: hash of the ids inside a sequence, hash at its root, and now and then the ids."""
    with open(OUT / f"{name}.reference", "w") as file:
        for i, line in enumerate(lines):
            ids = encode(line)
            row = fnv1a(ids) + " " + (fnv1a(encode_root(line)) if encode_root else "=")
            if i % FULL_IDS_EVERY == 0:
                row += " " + " ".join(map(str, ids))
            file.write(row.rstrip() + "\n")


def encoder(tokenizer):
    """Plain text never gives special tokens."""
    tokenizer.encode_special_tokens = True
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def byte_level(use_regex=False, prefix=False):
    return pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=use_regex)


def train_bpe(lines, pre_tokenizer, size, specials, added=(), normalizer=None):
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False)
                                  for text in specials])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    return tokenizer


def write_folder(name, tokenizer, config, merges_as_strings=False, ignore_merges=False):
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    state = json.loads(tokenizer.to_str())
    state["model"]["ignore_merges"] = ignore_merges
    if merges_as_strings:
        state["model"]["merges"] = [" ".join(merge) for merge in state["model"]["merges"]]
    text = json.dumps(state, ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(text)
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    return tokenizers.Tokenizer.from_str(text)


def write_gguf(name, pre, tokenizer, bos=None, eos=None, template=None):
    """A GGUF that holds the vocabulary of a byte-level BPE and nothing else."""
    state = json.loads(tokenizer.to_str())
    pieces = {id_: (text, 1) for text, id_ in state["model"]["vocab"].items()}
    for token in state["added_tokens"]:
        pieces[token["id"]] = (token["content"], 3 if token["special"] else 4)
    writer = gguf.GGUFWriter(OUT / f"{name}.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([pieces[i][0] for i in range(len(pieces))])
    writer.add_token_types([pieces[i][1] for i in range(len(pieces))])
    writer.add_token_merges([" ".join(merge) for merge in state["model"]["merges"]])
    if bos is not None:
        writer.add_bos_token_id(tokenizer.token_to_id(bos))
    if eos is not None:
        writer.add_eos_token_id(tokenizer.token_to_id(eos))
    if template is not None:
        writer.add_chat_template(template)
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


CONVERSATIONS = [
    [("user", "Hello")],
    [("system", "Be brief."), ("user", "  What is 2 + 2?\n")],
    [("user", "hi"), ("assistant", "Hello! How can I help?"), ("user", "日本語で 😀")],
    [("system", "  padded \u00a0"), ("user", "\n\nx\n\n"), ("assistant", "def f():\n    pass\n")],
    [("user", "")],
]


def chat_cases(name, tokenizer, template, bos=None):
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos)
    for conversation in CONVERSATIONS:
        messages = [{"role": role, "content": content} for role, content in conversation]
        for generation in (False, True):
            text = fast.apply_chat_template(messages, chat_template=template, tokenize=False,
                                            add_generation_prompt=generation)
            ids = fast(text, add_special_tokens=False)["input_ids"]
            yield {"tokenizer": name, "template": template, "messages": messages,
                   "add_generation_prompt": generation, "ids": ids}


def byte_level_references(lines, cases):
    header_tokens = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>",
                     "<|end_header_id|>", "<|eot_id|>"]
    llama3 = train_bpe(lines, pre_tokenizers.Sequence([split(LLAMA3_PATTERN), byte_level()]), 2600,
                       header_tokens)
    llama3.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(
            single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|> $B",
            special_tokens=[("<|begin_of_text|>", llama3.token_to_id("<|begin_of_text|>"))])])
    llama3 = write_folder("llama3", llama3, {
        "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>",
        "chat_template": LLAMA3_TEMPLATE}, ignore_merges=True)
    write_gguf("llama-bpe", "llama-bpe", llama3, "<|begin_of_text|>", "<|eot_id|>",
               LLAMA31_TEMPLATE)
    cases += chat_cases("llama3", llama3, LLAMA3_TEMPLATE, "<|begin_of_text|>")
    cases += chat_cases("llama-bpe.gguf", llama3, LLAMA31_TEMPLATE, "<|begin_of_text|>")
    write_reference("llama3", lines, encoder(llama3))

    qwen2 = train_bpe(lines, pre_tokenizers.Sequence([split(QWEN2_PATTERN), byte_level()]), 2600,
                      ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
                      ["<tool_call>", "</tool_call>", "<tool", "im_end|><to"], normalizers.NFC())
    qwen2 = write_folder("qwen2", qwen2, {
        "add_bos_token": False, "bos_token": None, "eos_token": "<|im_end|>",
        "chat_template": CHATML_WITH_DEFAULT}, merges_as_strings=True)
    write_gguf("qwen2", "qwen2", qwen2, None, "<|im_end|>", CHATML_WITH_DEFAULT)
    cases += chat_cases("qwen2", qwen2, CHATML_WITH_DEFAULT)
    cases += chat_cases("qwen2.gguf", qwen2, CHATML_WITH_DEFAULT)
    write_reference("qwen2", lines, encoder(qwen2))

    gpt2 = train_bpe(lines, byte_level(use_regex=True, prefix=True), 1100, ["<|endoftext|>"])
    gpt2 = write_folder("gpt2", gpt2, {"eos_token": {"content": "<|endoftext|>"}})
    root = encoder(gpt2)
    inner = tokenizers.Tokenizer.from_str(gpt2.to_str())
    inner.pre_tokenizer = byte_level(use_regex=True)
    write_reference("gpt2", lines, encoder(inner), root)
    # The same vocabulary under the other rules that a GGUF may name.
    rules = {
        "gpt-2": [byte_level(use_regex=True)],
        "smollm": [pre_tokenizers.Digits(individual_digits=True), byte_level(use_regex=True)],
        "tekken": [split(TEKKEN_PATTERN), byte_level()],
        "default": [split(r"[\p{P}\$\+<=>\^~\|]+"), split(GPT2_PATTERN), split(r"\p{N}+"),
                    split("[0-9][0-9][0-9]"), byte_level()],
    }
    for pre, steps in rules.items():
        write_gguf(pre, pre, inner, eos="<|endoftext|>")
        state = json.loads(inner.to_str())
        state["model"]["ignore_merges"] = pre == "tekken"
        variant = tokenizers.Tokenizer.from_str(json.dumps(state))
        variant.pre_tokenizer = pre_tokenizers.Sequence(steps)
        write_reference(pre, lines, encoder(variant))


def sentencepiece_references(lines):
    options = {
        "spm_bpe": dict(model_type="bpe", vocab_size=2000, normalization_rule_name="identity",
                        remove_extra_whitespaces=False, byte_fallback=True,
                        user_defined_symbols=["[USR]", "==", SPACE_SYMBOL * 4],
                        control_symbols=["<pad>"], character_coverage=0.98),
        "spm_unigram": dict(model_type="unigram", vocab_size=1600, byte_fallback=True,
                            normalization_rule_name="nmt_nfkc", user_defined_symbols=["[USR]"],
                            character_coverage=0.98),
        "spm_unknown": dict(model_type="unigram", vocab_size=1050,
                            normalization_rule_name="identity", hard_vocab_limit=False,
                            character_coverage=0.98),
    }
    for name, option in options.items():
        folder = OUT / name
        folder.mkdir(parents=True, exist_ok=True)
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([line for line in lines if "\n" not in line]),
            model_writer=model, minloglevel=2, num_threads=1, **option)
        proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
        if name == "spm_bpe":  # merging goes through unused pieces, and takes them apart again
            for piece in [p for p in proto.pieces if p.type == 1 and len(p.piece) > 2][5:400:9]:
                piece.type = 5
        proto.trainer_spec.ClearField("self_test_sample_size")
        (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
        root = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        proto.normalizer_spec.add_dummy_prefix = False
        inner = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        write_reference(name, lines, inner.encode, root.encode)
        if name == "spm_bpe":
            writer = gguf.GGUFWriter(OUT / "spm_bpe.gguf", "llama")
            writer.add_tokenizer_model("llama")
            writer.add_token_list([piece.piece for piece in proto.pieces])
            writer.add_token_scores([piece.score for piece in proto.pieces])
            writer.add_token_types([piece.type for piece in proto.pieces])
            writer.add_bos_token_id(root.bos_id())
            writer.add_eos_token_id(root.eos_id())
            finish(writer)


def demo_reference(lines, path, cases):
    """Hugging Face tokenizers on the vocabulary, merges and token types inside a GGUF."""
    fields = gguf.GGUFReader(path).fields
    read = lambda key: fields[f"tokenizer.{key}"].contents()
    pieces, types = read("ggml.tokens"), read("ggml.token_type")
    special = [piece for piece, kind in zip(pieces, types) if kind == 3]
    merges = [tuple(merge.split(" ")) for merge in read("ggml.merges")]
    tokenizer = tokenizers.Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), byte_level(use_regex=True)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False)
                                  for text in special])
    cases += chat_cases("demo", tokenizer, read("chat_template"))
    write_reference("demo", lines, encoder(tokenizer))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep-corpus", action="store_true")
    parser.add_argument("--demo-model", help="GGUF of the demo model")
    args = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    corpus = OUT / "corpus.jsonl"  # a JSON string a line: texts hold line ends of their own
    if not args.keep_corpus:
        corpus.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n"
                                  for line in make_corpus()))
    # Not splitlines(): that also cuts at U+0085 and U+2028.
    lines = [json.loads(line) for line in corpus.read_text().split("\n") if line]
    cases = []
    byte_level_references(lines, cases)
    sentencepiece_references(lines)
    chat = OUT / "chat.json"
    if args.demo_model:
        demo_reference(lines, args.demo_model, cases)
    elif chat.exists():
        cases += [case for case in json.loads(chat.read_text()) if case["tokenizer"] == "demo"]
    chat.write_text("[\n" + ",\n".join(json.dumps(c, ensure_ascii=False) for c in cases) + "\n]\n")
    print(f"{len(lines)} lines, {corpus.stat().st_size} bytes")


if __name__ == "__main__":
    main()
