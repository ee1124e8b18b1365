#include "product_bf16.cc"

#include "cases.h"

namespace ewm {

static const Row of_product_bf16[] = {
    {"product_bf16 plain", &product_bf16<Plain, BiasRelu>},
    {"product_bf16 gathered", &product_bf16<Gathered, ResidualScattered>},
    {"product_bf16 norm", &product_bf16<Norm, BiasRelu>},
};
static const Rows rows(of_product_bf16);

}  // namespace ewm
