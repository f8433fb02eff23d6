// wgmma of one warpgroup: 64 x kN float accumulators += A (64 x 16) B (16 x kN) from bf16 or fp16.
//
//   Wgmma<bf16, 128>::run(d, a_descriptor, b_descriptor, accumulate);   // A in shared memory
//   Wgmma<bf16, 128>::run(d, a_registers, b_descriptor, accumulate);    // A in registers, as for mma
//   Wgmma<bf16, 128, 1, 1>: operands MN-major in shared memory
//
// Register d[4 j + 2 h + i] of lane t of warp w holds row 16 w + 8 h + t / 4, column 8 j + 2 (t % 4) + i.
// accumulate = 0 ignores the old d. Part of primitives.cuh.
#pragma once

namespace ik::cuda {

template <typename T, int kN, int kTransposeA = 0, int kTransposeB = 0>
struct Wgmma;

#ifdef __CUDACC__
#define IK_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define IK_D16(i) IK_D4(i), IK_D4(i + 4), IK_D4(i + 8), IK_D4(i + 12)
#define IK_D32 IK_D16(0), IK_D16(16)
#define IK_D48 IK_D32, IK_D16(32)
#define IK_D64 IK_D48, IK_D16(48)
#define IK_D80 IK_D64, IK_D16(64)
#define IK_D96 IK_D80, IK_D16(80)
#define IK_D112 IK_D96, IK_D16(96)
#define IK_D124 IK_D112, IK_D4(112), IK_D4(116), IK_D4(120)
#define IK_D128 IK_D124, IK_D4(124)
#define IK_R32                                                                                                     \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31"
#define IK_R48 IK_R32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define IK_R64 IK_R48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define IK_R80 IK_R64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define IK_R96 IK_R80 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define IK_R112 \
  IK_R96        \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define IK_R124 IK_R112 ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123"
#define IK_R128 IK_R124 ", %124, %125, %126, %127"

// p0 ... p6: the numbers of the operands behind the kR accumulators.
#define IK_WGMMA(T, TYPE, N, R, p0, p1, p2, p3, p4, p5, p6)                                                       \
  template <int kTransposeA, int kTransposeB>                                                                     \
  struct Wgmma<T, N, kTransposeA, kTransposeB> {                                                                  \
    static IK_DEVICE void run(float (&d)[R], uint64_t a, uint64_t b, int accumulate) {                            \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p2 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N          \
                   "k16.f32." TYPE "." TYPE " {" IK_R##R "}, %" #p0 ", %" #p1 ", p, 1, 1, %" #p3 ", %" #p4 ";\n}" \
                   : IK_D##R                                                                                      \
                   : "l"(a), "l"(b), "r"(accumulate), "n"(kTransposeA), "n"(kTransposeB));                        \
    }                                                                                                             \
    static IK_DEVICE void run(float (&d)[R], const uint32_t (&a)[4], uint64_t b, int accumulate) {                \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p5 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N          \
                   "k16.f32." TYPE "." TYPE " {" IK_R##R "}, {%" #p0 ", %" #p1 ", %" #p2 ", %" #p3 "}, %" #p4     \
                                                         ", p, 1, 1, %" #p6 ";\n}"                                \
                   : IK_D##R                                                                                      \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kTransposeB));      \
    }                                                                                                             \
  }
#define IK_WGMMA_TYPES(...)            \
  IK_WGMMA(bf16, "bf16", __VA_ARGS__); \
  IK_WGMMA(fp16, "f16", __VA_ARGS__)

IK_WGMMA_TYPES(64, 32, 32, 33, 34, 35, 36, 37, 38);
IK_WGMMA_TYPES(96, 48, 48, 49, 50, 51, 52, 53, 54);
IK_WGMMA_TYPES(128, 64, 64, 65, 66, 67, 68, 69, 70);
IK_WGMMA_TYPES(160, 80, 80, 81, 82, 83, 84, 85, 86);
IK_WGMMA_TYPES(192, 96, 96, 97, 98, 99, 100, 101, 102);
IK_WGMMA_TYPES(224, 112, 112, 113, 114, 115, 116, 117, 118);
IK_WGMMA_TYPES(248, 124, 124, 125, 126, 127, 128, 129, 130);
IK_WGMMA_TYPES(256, 128, 128, 129, 130, 131, 132, 133, 134);

#else

template <typename T, int kN, int kTransposeA, int kTransposeB>
struct Wgmma {
  static constexpr host_cuda::Operand kOperand =
      std::is_same_v<T, bf16> ? host_cuda::Operand::kBf16 : host_cuda::Operand::kFp16;
  static IK_DEVICE void run(float (&d)[kN / 2], uint64_t a, uint64_t b, int accumulate IK_AT) {
    host_cuda::wgmma({d, nullptr, a, b, kN, kOperand, accumulate != 0, kTransposeA != 0, kTransposeB != 0}, at);
  }
  static IK_DEVICE void run(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, int accumulate IK_AT) {
    host_cuda::wgmma({d, a, 0, b, kN, kOperand, accumulate != 0, false, kTransposeB != 0}, at);
  }
};

#endif

}  // namespace ik::cuda
