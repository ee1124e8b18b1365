#include "product_i8.cc"

#include "cases.h"

namespace ewm {

static const Row of_product_i8[] = {
    {"product_i8 plain", &product_i8<Plain, BiasRelu>},
    {"product_i8 direct", &product_i8<Direct, BiasRelu>},
    {"product_i8 gathered", &product_i8<Gathered, ResidualScattered>},
    {"product_i8 norm", &product_i8<Norm, BiasRelu>},
};
static const Rows rows(of_product_i8);

}  // namespace ewm
