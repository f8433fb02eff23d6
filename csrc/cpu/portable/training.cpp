#define IK_TRAINING_NAMESPACE portable
#define IK_TRAINING_NAME "portable"
#define IK_TRAINING_KERNELS kernels_portable
#include "../training/table.inl"
