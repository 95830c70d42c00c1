#include "model/tokenizer/byte_level_bpe.h"

#include <string>

#include "absl/memory/memory.h"
#include "model/tokenizer/byte_level.h"
#include "model/tokenizer/nfc.h"
#include "model/tokenizer/text.h"
#include "model/tokenizer/utf8.h"

namespace espalier {
namespace {

uint64_t PairKey(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> ByteLevelBpe::Create(ByteLevelBpeSpec spec) {
  const auto merges = std::move(spec.merges);
  auto tokenizer = absl::WrapUnique(new ByteLevelBpe(std::move(spec)));
  if (absl::Status status = tokenizer->AddMerges(merges); !status.ok()) return status;
  return tokenizer;
}

ByteLevelBpe::ByteLevelBpe(ByteLevelBpeSpec spec)
    : VocabularyTokenizer(std::move(spec.vocabulary), std::move(spec.rules)),
      ignore_merges_(spec.ignore_merges),
      nfc_(spec.nfc),
      add_prefix_space_(spec.add_prefix_space),
      pre_tokenizer_(std::move(spec.pre_tokenizer)) {
  for (int byte = 0; byte < 256; ++byte) {
    const auto id = vocabulary().Find(ByteLevelSymbol(static_cast<unsigned char>(byte)));
    const bool usable = id.has_value() && vocabulary().kind(*id) == PieceKind::kNormal;
    byte_ids_[byte] = usable ? *id : -1;
  }
  for (int32_t id = 0; id < vocabulary().size(); ++id) {
    const PieceKind kind = vocabulary().kind(id);
    if (kind == PieceKind::kNormal && ignore_merges_) {
      whole_pieces_.try_emplace(vocabulary().bytes(id), id);
    }
    if (kind != PieceKind::kUserDefined && kind != PieceKind::kControl) continue;
    const std::string& written = vocabulary().piece(id);
    if (!spec.normalized_added_ids.contains(id)) {
      added_.Insert(written, id);
    } else {
      normalized_added_.Insert(nfc_ ? NormalizeNfc(written) : written, id);
    }
  }
}

absl::Status ByteLevelBpe::AddMerges(
    const std::vector<std::pair<std::string_view, std::string_view>>& merges) {
  merges_.reserve(merges.size());
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left, right] = merges[rank];
    const std::optional<int32_t> left_id = vocabulary().Find(left);
    const std::optional<int32_t> right_id = vocabulary().Find(right);
    const std::optional<int32_t> joined_id = vocabulary().Find(Concat(left, right));
    if (!left_id.has_value() || !right_id.has_value() || !joined_id.has_value()) {
      return absl::InvalidArgumentError(Concat("merges: number ", rank, ", '", left, "' with '",
                                               right,
                                               "': a side or the result is not in the vocabulary"));
    }
    // Special tokens never come out of text, whatever the merges say.
    if (vocabulary().IsSpecial(*joined_id)) continue;
    merges_[PairKey(*left_id, *right_id)] = {.rank = static_cast<int32_t>(rank), .id = *joined_id};
  }
  return absl::OkStatus();
}

void ByteLevelBpe::EncodeText(std::string_view text, bool at_root,
                              std::vector<int32_t>* ids) const {
  Scratch scratch;
  bool first = true;
  ForEachStretch(text, [&](std::string_view stretch, bool valid) {
    if (!valid) {
      EncodePiece(stretch, &scratch, ids);
    } else {
      SplitAdded(added_, stretch, ids, [&](std::string_view between) {
        const bool at_start = first && between.data() == text.data();
        EncodeValid(between, add_prefix_space_ && at_root && at_start, &scratch, ids);
      });
    }
    first = false;
  });
}

template <typename Between>
void ByteLevelBpe::SplitAdded(const PieceTrie& added, std::string_view text,
                              std::vector<int32_t>* ids, Between between) const {
  size_t begin = 0;
  for (size_t at = 0; !added.empty() && at < text.size();) {
    const PieceTrie::Match match = added.LongestPrefix(text.substr(at));
    // A special token's spelling is plain text, but as in the reference no shorter added piece is
    // looked for inside it.
    if (match.bytes > 0 && !vocabulary().IsSpecial(match.id)) {
      if (at > begin) between(text.substr(begin, at - begin));
      ids->push_back(match.id);
      begin = at + match.bytes;
    }
    at += match.bytes > 0 ? match.bytes : 1;
  }
  if (begin < text.size()) between(text.substr(begin));
}

void ByteLevelBpe::EncodeValid(std::string_view text, bool prefix_space, Scratch* scratch,
                               std::vector<int32_t>* ids) const {
  std::string rewritten;
  if (nfc_) text = rewritten = NormalizeNfc(text);
  if (prefix_space && !text.starts_with(' ')) {
    rewritten = Concat(" ", text);
    text = rewritten;
  }
  SplitAdded(normalized_added_, text, ids, [&](std::string_view between) {
    for (const std::string_view piece : pre_tokenizer_.Split(between)) {
      EncodePiece(piece, scratch, ids);
    }
  });
}

void ByteLevelBpe::EncodePiece(std::string_view piece, Scratch* scratch,
                               std::vector<int32_t>* ids) const {
  if (ignore_merges_) {
    if (const auto whole = whole_pieces_.find(piece); whole != whole_pieces_.end()) {
      ids->push_back(whole->second);
      return;
    }
  }
  std::vector<MergeSymbol>& symbols = scratch->symbols;
  symbols.clear();
  for (size_t i = 0; i < piece.size(); ++i) {
    const int32_t id = byte_ids_[static_cast<unsigned char>(piece[i])];
    if (id >= 0) AppendSymbol(&symbols, static_cast<uint32_t>(i), 1, id);
  }
  if (symbols.empty()) return;
  MergeSymbols(symbols, scratch->heap,
               [&](const MergeSymbol& left, const MergeSymbol& right) -> std::optional<Merge> {
                 const auto merge = merges_.find(PairKey(left.id, right.id));
                 if (merge == merges_.end()) return std::nullopt;
                 return merge->second;
               });
  for (int32_t at = 0; at >= 0; at = symbols[at].next) ids->push_back(symbols[at].id);
}

}  // namespace espalier
