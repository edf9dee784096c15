// y = (x - mean)·rstd·weight + bias, rstd = 1/√(var + eps), var the population's; x [rows, D].
// Grid: one subgroup a row; its lanes stride over the columns.
#include "lib/common.glsl"

layout(push_constant) uniform Push {
    In x, weight, bias;
    Out y, mean, rstd;
    uint rows, columns;
    float eps;
} p;

void main() {
    uint row = group(), lane = gl_SubgroupInvocationID, at = row * p.columns;
    if (row >= p.rows) return;
    float sum = 0.0;
    for (uint j = lane; j < p.columns; j += SG) sum += p.x.v[at + j];
    float mean = subgroupAdd(sum) / float(p.columns);
    float squares = 0.0;
    for (uint j = lane; j < p.columns; j += SG) {
        float d = p.x.v[at + j] - mean;
        squares += d * d;
    }
    float rstd = 1.0 / sqrt(subgroupAdd(squares) / float(p.columns) + p.eps);
    for (uint j = lane; j < p.columns; j += SG)
        p.y.v[at + j] = (p.x.v[at + j] - mean) * rstd * p.weight.v[j] + p.bias.v[j];
    if (lane == 0) {
        p.mean.v[row] = mean;
        p.rstd.v[row] = rstd;
    }
}
