// What every kernel starts from. The host defines SG, the lanes of a subgroup, and WG, those of a workgroup.
//
// A kernel's arguments are the members of its push-constant block, pointers first. The type of a pointer says what the
// kernel does with all that it points to, and the stream derives its barriers from that:
//   In (reads floats)   InI (reads ints)   Out (writes floats)   InOut (both)
// A null pointer is an argument that was left out.
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#extension GL_KHR_shader_subgroup_ballot : require

layout(local_size_x = WG) in;

layout(buffer_reference, std430, buffer_reference_align = 4) readonly buffer In { float v[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) readonly buffer InI { int v[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) writeonly buffer Out { float v[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer InOut { float v[]; };

// Workgroups are numbered along x, then y: a device may allow no more than 65,535 along one axis.
uint group() { return gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x; }

bool given(In q) { return uvec2(q) != uvec2(0); }
