// Vectors of the accumulation type at the width of this instruction set, loads and stores that convert.
// No standard library templates here: their instantiations would be shared between instruction sets.

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define IK_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define IK_VECTOR_BYTES 32
#else
#define IK_VECTOR_BYTES 16
#endif

typedef float FloatVector __attribute__((vector_size(IK_VECTOR_BYTES)));
typedef double DoubleVector __attribute__((vector_size(IK_VECTOR_BYTES)));
typedef uint32_t BitsVector __attribute__((vector_size(IK_VECTOR_BYTES)));
typedef uint16_t ShortVector __attribute__((vector_size(IK_VECTOR_BYTES / 2)));

template <typename A>
struct VectorOf;
template <>
struct VectorOf<float> {
  using Type = FloatVector;
};
template <>
struct VectorOf<double> {
  using Type = DoubleVector;
};
template <typename A>
using Vector = typename VectorOf<A>::Type;
template <typename A>
constexpr int64_t kLanes = IK_VECTOR_BYTES / sizeof(A);

constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

// Minus zero is exact for every value, so this is one broadcast; plus zero would be an addition.
template <typename A>
inline Vector<A> broadcast(A value) {
  return value - Vector<A>{};
}

// sum += a * b.
#if IK_VECTOR_BYTES == 64
// In sum's own register: in loops of many sums gcc renames them, and then spills some.
inline void accumulate(FloatVector& sum, FloatVector a, FloatVector b) {
  __asm__("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}
inline void accumulate(DoubleVector& sum, DoubleVector a, DoubleVector b) {
  __asm__("vfmadd231pd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}
#else
template <typename V>
inline void accumulate(V& sum, V a, V b) {
  sum += a * b;
}
#endif

inline FloatVector load(const float* p) {
  FloatVector v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
inline DoubleVector load(const double* p) {
  DoubleVector v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
inline FloatVector load(const Bf16* p) {
  ShortVector v;
  __builtin_memcpy(&v, p, sizeof(v));
  return (FloatVector)(__builtin_convertvector(v, BitsVector) << 16);
}
inline FloatVector load(const F16* p) {
#if IK_VECTOR_BYTES == 64
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif IK_VECTOR_BYTES == 32 && defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  FloatVector v;
  for (int64_t i = 0; i < kLanes<float>; ++i) v[i] = to_accum(p[i]);
  return v;
#endif
}

inline void store(float* p, FloatVector v) { __builtin_memcpy(p, &v, sizeof(v)); }
inline void store(double* p, DoubleVector v) { __builtin_memcpy(p, &v, sizeof(v)); }
inline ShortVector round_to_bfloat16(FloatVector v) {
  const BitsVector bits = (BitsVector)v;
  const BitsVector rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const BitsVector quiet_nan = BitsVector{} + 0x7fc0;
  return __builtin_convertvector(v == v ? rounded : quiet_nan, ShortVector);
}
inline void store(Bf16* p, FloatVector v) {
  const ShortVector s = round_to_bfloat16(v);
  __builtin_memcpy(p, &s, sizeof(s));
}
inline void store(F16* p, FloatVector v) {
#if IK_VECTOR_BYTES == 64
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#elif IK_VECTOR_BYTES == 32 && defined(__F16C__)
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int64_t i = 0; i < kLanes<float>; ++i) from_accum(v[i], p + i);
#endif
}

// The first n lanes; the others read as zero and are not written.
#if IK_VECTOR_BYTES == 64
inline FloatVector load_first(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
inline DoubleVector load_first(const double* p, int64_t n) {
  return _mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
}
inline FloatVector load_first(const Bf16* p, int64_t n) {
  const __m256i v = _mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p);
  return (FloatVector)_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16);
}
inline FloatVector load_first(const F16* p, int64_t n) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p));
}
inline void store_first(float* p, FloatVector v, int64_t n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), v); }
inline void store_first(double* p, DoubleVector v, int64_t n) {
  _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), v);
}
inline void store_first(Bf16* p, FloatVector v, int64_t n) {
  _mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1), (__m256i)round_to_bfloat16(v));
}
inline void store_first(F16* p, FloatVector v, int64_t n) {
  _mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
#else
template <typename T>
inline Vector<Accum<T>> load_first(const T* p, int64_t n) {
  T full[kLanes<Accum<T>>] = {};
  for (int64_t i = 0; i < n; ++i) full[i] = p[i];
  return load(full);
}
template <typename T>
inline void store_first(T* p, Vector<Accum<T>> v, int64_t n) {
  T full[kLanes<Accum<T>>];
  store(full, v);
  for (int64_t i = 0; i < n; ++i) p[i] = full[i];
}
#endif

template <typename T>
inline Vector<Accum<T>> load_up_to(const T* p, int64_t n) {
  return n >= kLanes<Accum<T>> ? load(p) : load_first(p, n);
}
template <typename T>
inline void store_up_to(T* p, Vector<Accum<T>> v, int64_t n) {
  if (n >= kLanes<Accum<T>>)
    store(p, v);
  else
    store_first(p, v, n);
}
