#if defined(__x86_64__)
#define IK_TRAINING_NAMESPACE avx2
#define IK_TRAINING_NAME "avx2"
#define IK_TRAINING_KERNELS kernels_avx2
#include "../training/table.inl"
#endif
