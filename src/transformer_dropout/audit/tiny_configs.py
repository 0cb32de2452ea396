"""Small configs for any model type of transformers: every size in them is shrunk, however deep it lies."""

from collections.abc import Mapping
from typing import Any

# What the families call the same few sizes; a config takes those that it knows.
SIZES = {
    2: "num_hidden_layers n_layer n_layers num_layers num_decoder_layers encoder_layers decoder_layers "
    "num_key_value_heads num_experts_per_tok",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
    "num_local_experts num_experts rotary_dim",
    8: "head_dim d_kv sliding_window",
    32: "hidden_size n_embd d_model dim embedding_size word_embed_proj_dim pooler_hidden_size",
    64: "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff hidden_dim "
    "vocab_size max_position_embeddings n_positions max_seq_len",
}
# What they call them in configs of images, sound and experts besides.
MORE = {
    1: "attn_layer_offset expert_layer_offset",
    2: "num_encoder_layers encoder_num_hidden_layers decoder_num_hidden_layers depth num_blocks "
    "moe_topk num_query_groups vision_layers text_layers n_shared_experts window_size "
    "attn_layer_period expert_layer_period",
    4: "attention_heads n_routed_experts moe_num_experts num_frames encoder_num_attention_heads "
    "decoder_num_attention_heads num_queries num_conv_pos_embedding_groups",
    8: "patch_size attention_head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim q_lora_rank "
    "kv_lora_rank num_conv_pos_embeddings num_latents",
    32: "embed_dim projection_dim image_size encoder_hidden_size decoder_hidden_size "
    "out_hidden_size text_hidden_size moe_intermediate_size shared_expert_intermediate_size "
    "width",
    64: "mlp_dim d_inner max_source_positions max_target_positions n_inner "
    "decoder_intermediate_size encoder_intermediate_size dim_feedforward ffn_hidden_size",
}
TINY = {name: size for size, names in SIZES.items() for name in names.split()}
DEEP = TINY | {name: size for size, names in MORE.items() for name in names.split()}
BLOCKS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers")
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
# What names single blocks, or belongs to stored weights.
LEFT_OUT = ("out_features", "out_indices", "_out_features", "_out_indices", "stage_names", "per_layer_config")
# In place of a network of timm, which not everybody has; neither drops.
RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
HEADS = ("num_heads", "num_attention_heads")
AS_THEY_ARE = ("id2label", "label2id", "rope_parameters", "rope_scaling")


def shrunk(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config's values with every size small, in the configs inside it too."""
    result: dict[str, Any] = {}
    blocks = next(
        (values[name] for name in (*BLOCKS, "num_encoder_layers") if isinstance(values.get(name), int)), 0
    )
    special = 40
    for name, value in values.items():
        if name in LEFT_OUT or name in ("transformers_version", "dtype", "torch_dtype"):
            continue
        if isinstance(value, Mapping) and value.get("model_type") == "timm_backbone":
            value = RESNET | {"out_indices": value.get("out_indices")}
        elif isinstance(value, Mapping) and name not in AS_THEY_ARE:
            value = shrunk(value)
        elif name in DEEP and type(value) is int and value > 0:
            value = DEEP[name]
        elif isinstance(value, list) and blocks > 2 and len(value) == blocks:
            # One entry a block: the first and the last kind of block stay; heads must divide the width.
            value = [value[0], value[-1]] if name not in HEADS else [DEEP[name]] * 2
        elif name == "image_size" and isinstance(value, list):
            value = [DEEP[name]] * len(value)
        elif (
            name.endswith(("token_id", "token_index")) and type(value) is int and value >= TINY["vocab_size"]
        ):
            value, special = TOKENS.get(name, special), special + 1
        result[name] = value
    return result
