// What the attention kernels share: where a workgroup works, and the soft cap.
#include "lib/functions.glsl"
#include "lib/philox.glsl"

struct Place {
    bool inside;
    uint block;     // of `size` positions in the sequence
    uint head_row;  // row of position 0 in [B, H, T]
    uint qkv;       // offset of this head's q at position 0; k and v lie `width` and 2·`width` further
    uint stride;    // from one position to the next in qkv
    uint width;     // H·DH; from one position to the next in out
    uint out0;      // offset of this head at position 0 in out
};

Place place(uint batch, uint heads, uint len, uint size) {
    uint blocks = (len + size - 1) / size, block = group() % blocks, bh = group() / blocks;
    uint b = bh / heads, h = bh % heads, width = heads * DH;
    return Place(bh < batch * heads, block, bh * len, b * len * 3 * width + h * DH, 3 * width, width,
                 b * len * width + h * DH);
}

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
