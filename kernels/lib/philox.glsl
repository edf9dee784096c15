// Philox 4x32-10 (Salmon et al., SC11); see helios/random.py. rng points to seed low, seed high, step.

uvec4 philox(InI rng, uint c0, uint c1, uint site) {
    uvec4 x = uvec4(c0, c1, site, uint(rng.v[2]));
    uvec2 k = uvec2(uint(rng.v[0]), uint(rng.v[1]));
    [[unroll]] for (int i = 0; i < 10; i++) {
        uint h0, l0, h1, l1;
        umulExtended(0xD2511F53u, x.x, h0, l0);
        umulExtended(0xCD9E8D57u, x.z, h1, l1);
        x = uvec4(h1 ^ x.y ^ k.x, l1, h0 ^ x.w ^ k.y, l0);
        k += uvec2(0x9E3779B9u, 0xBB67AE85u);
    }
    return x;
}
