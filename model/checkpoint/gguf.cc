#include "model/checkpoint/gguf.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "model/checkpoint/quoted.h"

namespace espalier {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is read in place");

constexpr std::string_view kMagic = "GGUF";
// Limits of the specification; keys and names beyond them are not GGUF.
constexpr uint64_t kMaxKeyBytes = 65535;
constexpr uint64_t kMaxTensorNameBytes = 64;
constexpr uint32_t kMaxDims = 4;
constexpr uint64_t kDefaultAlignment = 32;
constexpr int64_t kMaxAlignment = 1 << 16;

template <typename T>
T Load(const std::byte* data) {
  T value;
  std::memcpy(&value, data, sizeof(T));
  return value;
}

// Names of ggml's element types, by their number; empty where a number was never given or retired.
constexpr std::string_view kGgmlTypeNames[] = {
    "F32",     "F16",    "Q4_0",    "Q4_1",  "",       "",      "Q5_0",  "Q5_1",
    "Q8_0",    "Q8_1",   "Q2_K",    "Q3_K",  "Q4_K",   "Q5_K",  "Q6_K",  "Q8_K",
    "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS",
    "I8",      "I16",    "I32",     "I64",   "F64",    "IQ1_M", "BF16"};

std::optional<DType> DTypeOfGgmlType(uint32_t type) {
  switch (type) {
    case 0:
      return DType::kF32;
    case 1:
      return DType::kF16;
    case 2:
      return DType::kQ4_0;
    case 3:
      return DType::kQ4_1;
    case 8:
      return DType::kQ8_0;
    case 12:
      return DType::kQ4_K;
    case 14:
      return DType::kQ6_K;
    case 30:
      return DType::kBF16;
    default:
      return std::nullopt;
  }
}

std::string GgmlTypeName(uint32_t type) {
  if (type < std::size(kGgmlTypeNames) && !kGgmlTypeNames[type].empty()) {
    return std::string(kGgmlTypeNames[type].data(), kGgmlTypeNames[type].size());
  }
  return absl::StrCat("number ", type);
}

struct NamedRange {
  std::string_view name;
  uint64_t begin;  // byte offset
  uint64_t end;    // one past the last
};

// Two tensors that claim the same bytes, or nothing. Sorts `ranges`.
std::optional<std::pair<NamedRange, NamedRange>> FindOverlap(std::vector<NamedRange>& ranges) {
  std::ranges::sort(ranges, {}, &NamedRange::begin);
  for (size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i].begin < ranges[i - 1].end) return {{ranges[i - 1], ranges[i]}};
  }
  return std::nullopt;
}

}  // namespace

// Reads front to back and never past the end.
class GgufFile::Parser {
 public:
  Parser(GgufFile* file, std::span<const std::byte> bytes) : file_(*file), bytes_(bytes) {}

  absl::Status Run();

 private:
  struct TensorEntry {
    std::string_view name;
    DType dtype;
    int64_t rows;
    int64_t cols;
    uint64_t offset;  // within the data section
    uint64_t num_bytes;
  };

  uint64_t remaining() const { return bytes_.size() - position_; }
  absl::Status Truncated(std::string_view what, uint64_t wanted) const;
  absl::StatusOr<std::span<const std::byte>> Take(uint64_t count, std::string_view what);
  template <typename T>
  absl::StatusOr<T> TakeScalar(std::string_view what);
  absl::StatusOr<std::string_view> TakeString(uint64_t max_bytes, std::string_view what);
  absl::StatusOr<Type> TakeType(std::string_view key);

  absl::Status ReadHeader();
  absl::Status ReadKeyValue();
  absl::Status ReadTensorInfo();
  absl::Status PlaceTensors();

  template <typename... Parts>
  absl::Status Invalid(const Parts&... parts) const {
    return absl::InvalidArgumentError(absl::StrCat(file_.name_, ": ", parts...));
  }

  GgufFile& file_;
  std::span<const std::byte> bytes_;
  uint64_t position_ = 0;
  uint64_t num_tensors_ = 0;
  uint64_t num_values_ = 0;
  std::vector<TensorEntry> entries_;
};

absl::Status GgufFile::Parser::Truncated(std::string_view what, uint64_t wanted) const {
  return Invalid("truncated: ", ToAbsl(what), " needs ", wanted, " bytes at offset ", position_,
                 ", the file has ", bytes_.size());
}

absl::StatusOr<std::span<const std::byte>> GgufFile::Parser::Take(uint64_t count,
                                                                  std::string_view what) {
  if (count > remaining()) return Truncated(what, count);
  const auto taken = bytes_.subspan(position_, count);
  position_ += count;
  return taken;
}

template <typename T>
absl::StatusOr<T> GgufFile::Parser::TakeScalar(std::string_view what) {
  const auto taken = Take(sizeof(T), what);
  if (!taken.ok()) return taken.status();
  return Load<T>(taken->data());
}

absl::StatusOr<std::string_view> GgufFile::Parser::TakeString(uint64_t max_bytes,
                                                              std::string_view what) {
  const auto length = TakeScalar<uint64_t>(what);
  if (!length.ok()) return length.status();
  if (*length > max_bytes) {
    return Invalid(ToAbsl(what), " at offset ", position_, " claims ", *length,
                   " bytes, the limit is ", max_bytes);
  }
  const auto taken = Take(*length, what);
  if (!taken.ok()) return taken.status();
  return std::string_view(reinterpret_cast<const char*>(taken->data()), taken->size());
}

absl::StatusOr<GgufFile::Type> GgufFile::Parser::TakeType(std::string_view key) {
  const auto type = TakeScalar<uint32_t>("a metadata type");
  if (!type.ok()) return type.status();
  if (*type > static_cast<uint32_t>(Type::kF64)) {
    return Invalid("metadata ", Quoted(key), " has unknown type ", *type);
  }
  return static_cast<Type>(*type);
}

absl::Status GgufFile::Parser::ReadHeader() {
  if (bytes_.size() < kMagic.size() ||
      std::memcmp(bytes_.data(), kMagic.data(), kMagic.size()) != 0) {
    return Invalid("not a GGUF file: it does not start with \"GGUF\"");
  }
  position_ = kMagic.size();
  const auto version = TakeScalar<uint32_t>("the version");
  if (!version.ok()) return version.status();
  if ((*version & 0xffff) == 0 && *version != 0) {
    return absl::UnimplementedError(
        absl::StrCat(file_.name_, ": big-endian GGUF is not supported"));
  }
  if (*version != 2 && *version != 3) {
    return absl::UnimplementedError(absl::StrCat(file_.name_, ": GGUF version ", *version,
                                                 " is not supported, only 2 and 3 are"));
  }
  const auto tensors = TakeScalar<uint64_t>("the tensor count");
  if (!tensors.ok()) return tensors.status();
  const auto values = TakeScalar<uint64_t>("the metadata count");
  if (!values.ok()) return values.status();
  num_tensors_ = *tensors;
  num_values_ = *values;
  return absl::OkStatus();
}

absl::Status GgufFile::Parser::ReadKeyValue() {
  const auto key = TakeString(kMaxKeyBytes, "a metadata key");
  if (!key.ok()) return key.status();
  auto type = TakeType(*key);
  if (!type.ok()) return type.status();

  Value value = {.type = *type, .is_array = *type == Type::kArray, .count = 1, .payload = {}};
  if (value.is_array) {
    type = TakeType(*key);
    if (!type.ok()) return type.status();
    if (*type == Type::kArray) {
      return absl::UnimplementedError(absl::StrCat(file_.name_, ": metadata ", Quoted(*key),
                                                   " is an array of arrays, not supported"));
    }
    const auto count = TakeScalar<uint64_t>("an array length");
    if (!count.ok()) return count.status();
    value.type = *type;
    value.count = *count;
  }

  const uint64_t start = position_;
  if (value.type == Type::kString) {
    for (uint64_t i = 0; i < value.count; ++i) {
      const auto text = TakeString(std::numeric_limits<uint64_t>::max(), "a metadata string");
      if (!text.ok()) return text.status();
    }
  } else {
    const uint64_t element_bytes = TypeBytes(value.type);
    if (value.count > remaining() / element_bytes) {
      return Invalid("truncated: metadata ", Quoted(*key), " claims ", value.count, " elements of ",
                     element_bytes, " bytes, ", remaining(), " bytes remain");
    }
    position_ += value.count * element_bytes;
  }
  value.payload = bytes_.subspan(start, position_ - start);
  if (!file_.values_.emplace(*key, value).second) {
    return Invalid("metadata ", Quoted(*key), " occurs twice");
  }
  return absl::OkStatus();
}

absl::Status GgufFile::Parser::ReadTensorInfo() {
  const auto name = TakeString(kMaxTensorNameBytes, "a tensor name");
  if (!name.ok()) return name.status();
  const auto num_dims = TakeScalar<uint32_t>("a tensor's dimension count");
  if (!num_dims.ok()) return num_dims.status();
  if (*num_dims < 1 || *num_dims > kMaxDims) {
    return Invalid("tensor ", Quoted(*name), " has ", *num_dims, " dimensions, 1 to ", kMaxDims,
                   " are allowed");
  }
  int64_t dims[kMaxDims] = {1, 1, 1, 1};
  int64_t elements = 1;
  for (uint32_t i = 0; i < *num_dims; ++i) {
    const auto dim = TakeScalar<uint64_t>("a tensor dimension");
    if (!dim.ok()) return dim.status();
    if (*dim == 0 || *dim > std::numeric_limits<int64_t>::max() ||
        __builtin_mul_overflow(elements, static_cast<int64_t>(*dim), &elements)) {
      return Invalid("tensor ", Quoted(*name), " has dimension ", i, " = ", *dim,
                     ": zero, or more elements than 2^63");
    }
    dims[i] = static_cast<int64_t>(*dim);
  }
  const auto ggml_type = TakeScalar<uint32_t>("a tensor type");
  if (!ggml_type.ok()) return ggml_type.status();
  const auto dtype = DTypeOfGgmlType(*ggml_type);
  if (!dtype) {
    return absl::UnimplementedError(absl::StrCat(
        file_.name_, ": tensor ", Quoted(*name), " has element type ", GgmlTypeName(*ggml_type),
        "; supported are F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q6_K"));
  }
  const auto offset = TakeScalar<uint64_t>("a tensor offset");
  if (!offset.ok()) return offset.status();
  const DTypeInfo& info = Info(*dtype);
  if (dims[0] % info.block_elements != 0) {
    return Invalid("tensor ", Quoted(*name), " has rows of ", dims[0],
                   " elements, not a multiple of ", ToAbsl(info.name), "'s block of ",
                   info.block_elements);
  }
  // More blocks than bytes cannot fit; checked first so that the product below cannot overflow.
  if (elements / info.block_elements > static_cast<int64_t>(bytes_.size())) {
    return Invalid("truncated: tensor ", Quoted(*name), " has ", elements, " elements of ",
                   ToAbsl(info.name), ", the file has ", bytes_.size(), " bytes");
  }
  entries_.push_back(
      {*name, *dtype, elements / dims[0], dims[0], *offset, BytesOf(*dtype, elements)});
  return absl::OkStatus();
}

absl::Status GgufFile::Parser::PlaceTensors() {
  uint64_t alignment = kDefaultAlignment;
  if (file_.Has("general.alignment")) {
    const auto given = file_.GetInt("general.alignment", 8, kMaxAlignment);
    if (!given.ok()) return given.status();
    if (!std::has_single_bit(static_cast<uint64_t>(*given))) {
      return Invalid("general.alignment is ", *given, ", not a power of two");
    }
    alignment = static_cast<uint64_t>(*given);
  }
  const uint64_t data_start = (position_ + alignment - 1) / alignment * alignment;
  const uint64_t data_bytes = data_start < bytes_.size() ? bytes_.size() - data_start : 0;

  std::vector<NamedRange> ranges;
  ranges.reserve(entries_.size());
  for (const TensorEntry& entry : entries_) {
    if (entry.offset % alignment != 0) {
      return Invalid("tensor ", Quoted(entry.name), " is at offset ", entry.offset,
                     ", not a multiple of the alignment ", alignment);
    }
    if (entry.offset > data_bytes || entry.num_bytes > data_bytes - entry.offset) {
      return Invalid("truncated: tensor ", Quoted(entry.name), " needs ", entry.num_bytes,
                     " bytes at data offset ", entry.offset, ", the file has ", data_bytes,
                     " bytes of data (", bytes_.size(), " in all)");
    }
    const ConstMatrix tensor = {bytes_.data() + data_start + entry.offset, entry.dtype, entry.rows,
                                entry.cols};
    if (!file_.tensors_.emplace(entry.name, tensor).second) {
      return Invalid("tensor ", Quoted(entry.name), " occurs twice");
    }
    ranges.push_back({entry.name, entry.offset, entry.offset + entry.num_bytes});
  }
  if (const auto pair = FindOverlap(ranges)) {
    return Invalid("tensors ", Quoted(pair->first.name), " and ", Quoted(pair->second.name),
                   " overlap");
  }
  return absl::OkStatus();
}

absl::Status GgufFile::Parser::Run() {
  if (absl::Status status = ReadHeader(); !status.ok()) return status;
  for (uint64_t i = 0; i < num_values_; ++i) {
    if (absl::Status status = ReadKeyValue(); !status.ok()) return status;
  }
  for (uint64_t i = 0; i < num_tensors_; ++i) {
    if (absl::Status status = ReadTensorInfo(); !status.ok()) return status;
  }
  return PlaceTensors();
}

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Open(const std::string& path) {
  auto mapped = MappedFile::Open(path);
  if (!mapped.ok()) return mapped.status();
  auto file = Parse(mapped->bytes(), path);
  if (file.ok()) (*file)->file_ = *std::move(mapped);
  return file;
}

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Parse(std::span<const std::byte> bytes,
                                                          std::string name) {
  std::unique_ptr<GgufFile> file(new GgufFile(std::move(name)));
  if (absl::Status status = Parser(file.get(), bytes).Run(); !status.ok()) return status;
  return file;
}

std::string_view GgufFile::TypeName(Type type) {
  constexpr std::string_view kNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                         "bool", "string", "array", "u64", "i64", "f64"};
  return kNames[static_cast<size_t>(type)];
}

size_t GgufFile::TypeBytes(Type type) {
  switch (type) {
    case Type::kU8:
    case Type::kI8:
    case Type::kBool:
      return 1;
    case Type::kU16:
    case Type::kI16:
      return 2;
    case Type::kU32:
    case Type::kI32:
    case Type::kF32:
      return 4;
    case Type::kU64:
    case Type::kI64:
    case Type::kF64:
      return 8;
    case Type::kString:
    case Type::kArray:
      return 0;
  }
  return 0;
}

absl::StatusOr<const GgufFile::Value*> GgufFile::Find(std::string_view key, bool is_array) const {
  const auto it = values_.find(key);
  if (it == values_.end()) {
    return absl::NotFoundError(absl::StrCat(name_, ": no metadata ", Quoted(key)));
  }
  if (it->second.is_array != is_array) {
    return WrongType(key, it->second, is_array ? "an array" : "a scalar");
  }
  return &it->second;
}

absl::Status GgufFile::WrongType(std::string_view key, const Value& value,
                                 std::string_view wanted) const {
  return absl::InvalidArgumentError(
      absl::StrCat(name_, ": metadata ", Quoted(key), " is ", value.is_array ? "an array of " : "",
                   ToAbsl(TypeName(value.type)), ", not ", ToAbsl(wanted)));
}

// Empty when the type is no integer, or the value is beyond 2^63.
std::optional<int64_t> GgufFile::ReadInt(Type type, const std::byte* data) {
  switch (type) {
    case Type::kU8:
      return Load<uint8_t>(data);
    case Type::kI8:
      return Load<int8_t>(data);
    case Type::kU16:
      return Load<uint16_t>(data);
    case Type::kI16:
      return Load<int16_t>(data);
    case Type::kU32:
      return Load<uint32_t>(data);
    case Type::kI32:
      return Load<int32_t>(data);
    case Type::kI64:
      return Load<int64_t>(data);
    case Type::kU64: {
      const uint64_t value = Load<uint64_t>(data);
      if (value > std::numeric_limits<int64_t>::max()) return std::nullopt;
      return static_cast<int64_t>(value);
    }
    case Type::kF32:
    case Type::kF64:
    case Type::kBool:
    case Type::kString:
    case Type::kArray:
      return std::nullopt;
  }
  return std::nullopt;
}

absl::StatusOr<int64_t> GgufFile::GetInt(std::string_view key, int64_t min, int64_t max) const {
  const auto value = Find(key, false);
  if (!value.ok()) return value.status();
  const auto number = ReadInt((*value)->type, (*value)->payload.data());
  if (!number) return WrongType(key, **value, "an integer below 2^63");
  if (*number < min || *number > max) {
    return absl::InvalidArgumentError(absl::StrCat(name_, ": metadata ", Quoted(key), " is ",
                                                   *number, ", not in ", min, " to ", max));
  }
  return *number;
}

absl::StatusOr<uint32_t> GgufFile::GetU32(std::string_view key) const {
  const auto value = GetInt(key, 0, std::numeric_limits<uint32_t>::max());
  if (!value.ok()) return value.status();
  return static_cast<uint32_t>(*value);
}

absl::StatusOr<float> GgufFile::GetF32(std::string_view key) const {
  const auto value = Find(key, false);
  if (!value.ok()) return value.status();
  if ((*value)->type == Type::kF32) return Load<float>((*value)->payload.data());
  if ((*value)->type == Type::kF64) {
    const double wide = Load<double>((*value)->payload.data());
    if (std::abs(wide) <= std::numeric_limits<float>::max()) return static_cast<float>(wide);
  }
  return WrongType(key, **value, "a number that fits f32");
}

absl::StatusOr<bool> GgufFile::GetBool(std::string_view key) const {
  const auto value = Find(key, false);
  if (!value.ok()) return value.status();
  if ((*value)->type != Type::kBool) return WrongType(key, **value, "bool");
  return Load<uint8_t>((*value)->payload.data()) != 0;
}

absl::StatusOr<std::string_view> GgufFile::GetString(std::string_view key) const {
  const auto value = Find(key, false);
  if (!value.ok()) return value.status();
  if ((*value)->type != Type::kString) return WrongType(key, **value, "string");
  const std::span<const std::byte> payload = (*value)->payload.subspan(sizeof(uint64_t));
  return std::string_view(reinterpret_cast<const char*>(payload.data()), payload.size());
}

absl::StatusOr<std::vector<std::string_view>> GgufFile::GetStringArray(std::string_view key) const {
  const auto value = Find(key, true);
  if (!value.ok()) return value.status();
  if ((*value)->type != Type::kString) return WrongType(key, **value, "an array of string");
  // The parser walked these lengths, so they stay within the payload.
  std::vector<std::string_view> strings;
  strings.reserve((*value)->count);
  const std::byte* data = (*value)->payload.data();
  for (uint64_t i = 0; i < (*value)->count; ++i) {
    const uint64_t length = Load<uint64_t>(data);
    strings.emplace_back(reinterpret_cast<const char*>(data + sizeof(uint64_t)), length);
    data += sizeof(uint64_t) + length;
  }
  return strings;
}

absl::StatusOr<std::vector<float>> GgufFile::GetF32Array(std::string_view key) const {
  const auto value = Find(key, true);
  if (!value.ok()) return value.status();
  if ((*value)->type != Type::kF32) return WrongType(key, **value, "an array of f32");
  std::vector<float> numbers((*value)->count);
  if (!numbers.empty()) {
    std::memcpy(numbers.data(), (*value)->payload.data(), (*value)->payload.size());
  }
  return numbers;
}

absl::StatusOr<std::vector<int32_t>> GgufFile::GetI32Array(std::string_view key) const {
  const auto value = Find(key, true);
  if (!value.ok()) return value.status();
  const size_t element_bytes = TypeBytes((*value)->type);
  std::vector<int32_t> numbers;
  numbers.reserve((*value)->count);
  for (uint64_t i = 0; i < (*value)->count; ++i) {
    const auto number = ReadInt((*value)->type, (*value)->payload.data() + i * element_bytes);
    if (!number) return WrongType(key, **value, "an array of integers");
    if (*number < std::numeric_limits<int32_t>::min() ||
        *number > std::numeric_limits<int32_t>::max()) {
      return absl::InvalidArgumentError(absl::StrCat(name_, ": metadata ", Quoted(key), "[", i,
                                                     "] is ", *number, ", not a 32-bit integer"));
    }
    numbers.push_back(static_cast<int32_t>(*number));
  }
  return numbers;
}

const ConstMatrix* GgufFile::FindTensor(std::string_view tensor_name) const {
  const auto it = tensors_.find(tensor_name);
  return it == tensors_.end() ? nullptr : &it->second;
}

}  // namespace espalier
