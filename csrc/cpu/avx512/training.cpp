#if defined(__x86_64__)
#define IK_TRAINING_NAMESPACE avx512
#define IK_TRAINING_NAME "avx512"
#define IK_TRAINING_KERNELS kernels_avx512
#include "../training/table.inl"
#endif
