// What the attention kernels share: where a workgroup works, and the soft cap.
#include "lib/functions.glsl"
#include "lib/philox.glsl"

struct Place {
    bool inside;
    uint block;     // of `size` positions in the sequence
    uint head_row;  // row of position 0 in [B, H, T]
    uint row;       // row of position 0 in [B, T]
    uint head;      // the head's first column; H·DH columns in all
    uint width;     // H·DH; from one position to the next in out
};

Place place(uint batch, uint heads, uint len, uint size) {
    uint blocks = (len + size - 1) / size, block = group() % blocks, bh = group() / blocks;
    return Place(bh < batch * heads, block, bh * len, bh / heads * len, bh % heads * DH, heads * DH);
}

// Offset of the head at a position of the sequence, where positions lie `stride` apart.
uint offset(Place at, uint position, uint stride) { return (at.row + position) * stride + at.head; }

float capped(float s, float cap) {
#if CAPPED
    return softcap(s, cap);
#else
    return s;
#endif
}

// Of the capped score c: 1 - tanh² = 1 - (c/cap)²
float capped_grad(float c, float cap) {
#if CAPPED
    return 1.0 - (c / cap) * (c / cap);
#else
    return 1.0;
#endif
}
