// The pieces of a vocabulary by id: how each is written, which bytes it stands for, what kind it
// is. Filled at load, then read by any thread.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/tokenizer/text.h"

namespace espalier {

enum class PieceKind : uint8_t {
  kUnused,       // a hole, or a piece that text never becomes
  kNormal,       // found by merging
  kUserDefined,  // found in plain text before merging
  kByte,         // one byte, for text that has no piece
  kControl,      // never found in plain text
  kUnknown,      // stands for text that has no piece
};

// Sentencepiece's numbering, which GGUF took over. INVALID_ARGUMENT: not 1 to 6.
absl::StatusOr<PieceKind> PieceKindFromNumber(int64_t number);

class Vocabulary {
 public:
  // Room for every vocabulary known, with a bound on what a file can make us allocate.
  static constexpr int32_t kMaxSize = 1 << 20;
  // Bounds the work at one position of a text. The longest known piece has some hundred bytes.
  static constexpr size_t kMaxPieceBytes = 1024;

  // Sets the piece of an id, replacing the id's former one; ids skipped become unused holes.
  // `bytes` is what the piece adds to a text; of special kinds it is never looked at. Of equal
  // pieces the first set is the one that Find gives. INVALID_ARGUMENT: id or size out of bounds.
  absl::Status Set(int64_t id, std::string_view piece, std::string_view bytes, PieceKind kind);

  // Text never becomes the piece of this id, which the vocabulary contains, from now on.
  void MakeSpecial(int32_t id) { pieces_[id].kind = PieceKind::kControl; }

  int size() const { return static_cast<int>(pieces_.size()); }
  bool Contains(int32_t id) const { return id >= 0 && id < size(); }
  // For ids that the vocabulary contains.
  const std::string& piece(int32_t id) const { return pieces_[id].piece; }
  const std::string& bytes(int32_t id) const { return pieces_[id].bytes; }
  PieceKind kind(int32_t id) const { return pieces_[id].kind; }
  bool IsSpecial(int32_t id) const {
    return kind(id) == PieceKind::kControl || kind(id) == PieceKind::kUnknown;
  }

  std::optional<int32_t> Find(std::string_view piece) const;

 private:
  struct Piece {
    std::string piece;
    std::string bytes;
    PieceKind kind = PieceKind::kUnused;
  };
  std::vector<Piece> pieces_;
  absl::flat_hash_map<std::string, int32_t, TextHash, std::equal_to<>> ids_;
};

}  // namespace espalier
