#include "product_rounded.cc"

#include "cases.h"

namespace ewm {

static const Row of_product_rounded[] = {
    {"product_rounded plain", &product_rounded<Plain, BiasRelu>},
    {"product_rounded gathered", &product_rounded<Gathered, ResidualScattered>},
    {"product_rounded norm", &product_rounded<Norm, BiasRelu>},
};
static const Rows rows(of_product_rounded);

}  // namespace ewm
