#include "product_fp16.cc"

#include "cases.h"

namespace ewm {

static const Row of_product_fp16[] = {
    {"product_fp16 plain", &product_fp16<Plain, BiasRelu>},
    {"product_fp16 gathered", &product_fp16<Gathered, ResidualScattered>},
    {"product_fp16 norm", &product_fp16<Norm, BiasRelu>},
};
static const Rows rows(of_product_fp16);

}  // namespace ewm
