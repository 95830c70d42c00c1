#include "model/tokenizer/vocabulary.h"

#include "model/tokenizer/text.h"

namespace espalier {

absl::StatusOr<PieceKind> PieceKindFromNumber(int64_t number) {
  switch (number) {
    case 1:
      return PieceKind::kNormal;
    case 2:
      return PieceKind::kUnknown;
    case 3:
      return PieceKind::kControl;
    case 4:
      return PieceKind::kUserDefined;
    case 5:
      return PieceKind::kUnused;
    case 6:
      return PieceKind::kByte;
    default:
      return absl::InvalidArgumentError(
          Concat("vocabulary: a token type of ", number, ", wanted 1 to 6"));
  }
}

absl::Status Vocabulary::Set(int64_t id, std::string_view piece, std::string_view bytes,
                             PieceKind kind) {
  if (id < 0 || id >= kMaxSize) {
    return absl::InvalidArgumentError(
        Concat("vocabulary: token id ", id, ", wanted 0 to ", kMaxSize - 1));
  }
  if (piece.size() > kMaxPieceBytes) {
    return absl::InvalidArgumentError(Concat("vocabulary: the piece of token ", id, " has ",
                                             piece.size(), " bytes, at most ", kMaxPieceBytes));
  }
  if (id >= size()) pieces_.resize(id + 1);
  Piece& slot = pieces_[id];
  if (const auto old = ids_.find(slot.piece); old != ids_.end() && old->second == id) {
    ids_.erase(old);
  }
  slot = {.piece = std::string(piece), .bytes = std::string(bytes), .kind = kind};
  if (!piece.empty()) ids_.try_emplace(slot.piece, static_cast<int32_t>(id));
  return absl::OkStatus();
}

std::optional<int32_t> Vocabulary::Find(std::string_view piece) const {
  const auto found = ids_.find(piece);
  if (found == ids_.end()) return std::nullopt;
  return found->second;
}

}  // namespace espalier
