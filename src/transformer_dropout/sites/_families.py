"""Where the sites of each model family lie: one small table per family, in the words of `Place`.

Paths of blocks and embeddings are relative to the base model (``model.base_model``), paths inside a block to
the block, paths of the classifier to the whole model. Read from transformers 5.23.
"""

from typing import cast

from ._places import Family, Place, Places, Stack, before, child, output, weights

# What the heads of all families call their dropouts, and the modules that begin the others.
HEAD = child(
    "pooler.dropout",
    "dropout",
    "classifier.dropout",
    "sop_classifier.dropout",
    "classification_head.dropout",
    "multiple_choice_head.first_dropout",
    "sequence_summary.last_dropout",
) + before(
    "lm_head",
    "embed_out",
    "cls",
    "predictions",
    "vocab_transform",
    "generator_predictions",
    "discriminator_predictions",
    "qa_outputs",
    "score",
    "classifier",
)


def llama(*, embedding: tuple[Place, ...] = output("embed_tokens"), **changes: tuple[Place, ...]) -> Family:
    """The layout of Llama, which most decoders follow, with some places changed."""
    places: Places = {
        "attention_weights": weights("self_attn", rate="attention_dropout"),
        "attention_output": output("self_attn.o_proj"),
        "mlp_hidden": before("mlp.down_proj"),
        "mlp_output": output("mlp"),
    }
    places.update(cast(Places, changes))
    stack = Stack(path="layers", places=places)
    return Family(stacks=(stack,), embedding=embedding, head=HEAD)


def gpt2(attention_weights: tuple[Place, ...]) -> Family:
    """The layout of GPT-2, whose relative GPT-J drops attention weights in a module."""
    places: Places = {
        "attention_weights": attention_weights,
        "attention_output": child("attn.resid_dropout", "crossattention.resid_dropout"),
        "mlp_hidden": output("mlp.act"),
        "mlp_output": child("mlp.dropout"),
    }
    return Family(stacks=(Stack(path="h", places=places),), embedding=child("drop"), head=HEAD)


def bert(attention_weights: tuple[Place, ...], **more: tuple[Place, ...]) -> Family:
    """The layout of BERT, whose relative DeBERTa drops attention weights in a module, and more places."""
    places: Places = {
        "attention_weights": attention_weights,
        "attention_output": child("attention.output.dropout"),
        "mlp_hidden": before("output.dense"),
        "mlp_output": child("output.dropout"),
    }
    places.update(cast(Places, more))
    return Family(
        stacks=(Stack(path="encoder.layer", places=places, causal=False),),
        embedding=child("embeddings.dropout", "encoder.conv.dropout"),
        head=HEAD,
    )


LLAMA = llama()

GPT_NEOX = Family(
    stacks=(
        Stack(
            path="layers",
            places={
                "attention_weights": weights("attention", rate="attention_dropout"),
                "attention_output": child("post_attention_dropout"),
                "mlp_hidden": before("mlp.dense_4h_to_h"),
                "mlp_output": child("post_mlp_dropout"),
            },
        ),
    ),
    embedding=child("emb_dropout"),
    head=HEAD,
)

OPT = Family(
    stacks=(
        Stack(
            path="decoder.layers",
            places={
                "attention_weights": weights("self_attn", rate="dropout"),
                "attention_output": output("self_attn.out_proj", rate="dropout"),
                "mlp_hidden": before("fc2"),
                "mlp_output": output("fc2", rate="dropout"),
            },
            owner="decoder",
            skips="decoder.layerdrop",
        ),
    ),
    embedding=output("decoder.embed_tokens"),
    head=HEAD,
)

BLOOM = Family(
    stacks=(
        Stack(
            path="h",
            places={
                "attention_weights": child("self_attention.attention_dropout"),
                "attention_output": output("self_attention.dense", rate="self_attention.hidden_dropout"),
                "mlp_hidden": before("mlp.dense_4h_to_h"),
                "mlp_output": output("mlp.dense_4h_to_h", rate="mlp.hidden_dropout"),
            },
        ),
    ),
    embedding=output("word_embeddings"),
    head=HEAD,
)

MPT = Family(
    stacks=(
        Stack(
            path="blocks",
            places={
                "attention_weights": (Place(path="attn", access="rate", rate="attn.attn_dropout_p"),),
                "attention_output": child("resid_attn_dropout"),
                "mlp_hidden": before("ffn.down_proj"),
                "mlp_output": output("ffn.down_proj", rate="ffn.hidden_dropout"),
            },
        ),
    ),
    embedding=output("wte"),
    head=HEAD,
)

DISTILBERT = Family(
    stacks=(
        Stack(
            path="transformer.layer",
            places={
                "attention_weights": weights("attention", rate="dropout.p"),
                "attention_output": output("attention.out_lin"),
                "mlp_hidden": before("ffn.lin2"),
                "mlp_output": child("ffn.dropout"),
            },
            causal=False,
        ),
    ),
    embedding=child("embeddings.dropout"),
    head=HEAD,
)

# All blocks share one set of modules, so a layer here acts in every pass through them.
ALBERT = Family(
    stacks=(
        Stack(
            path="encoder.albert_layer_groups.*.albert_layers",
            places={
                "attention_weights": weights("attention", rate="attention_dropout.p"),
                "attention_output": child("attention.output_dropout"),
                "mlp_hidden": before("ffn_output"),
                "mlp_output": output("ffn_output"),
            },
            causal=False,
        ),
    ),
    embedding=child("embeddings.dropout"),
    head=HEAD,
)

MODERNBERT = Family(
    stacks=(
        Stack(
            path="layers",
            places={
                "attention_weights": weights("attn", rate="attention_dropout"),
                "attention_output": child("attn.out_drop"),
                "mlp_hidden": child("mlp.drop"),
                "mlp_output": output("mlp"),
            },
            causal=False,
        ),
    ),
    embedding=child("embeddings.drop"),
    head=child("drop") + before("decoder"),
)


def t5_stack(path: str, *, mlp: str, attentions: tuple[str, ...], causal: bool) -> Stack:
    """One of T5's two stacks, whose sublayers are numbered."""
    owner = path.partition(".")[0]
    return Stack(
        path=path,
        places={
            "attention_weights": weights(*attentions, rate="dropout"),
            "attention_output": child(
                *(f"{attention.rpartition('.')[0]}.dropout" for attention in attentions)
            ),
            "mlp_hidden": child(f"{mlp}.DenseReluDense.dropout"),
            "mlp_output": child(f"{mlp}.dropout"),
        },
        causal=causal,
        owner=owner,
        end=output(f"{owner}.final_layer_norm", rate=f"{owner}.dropout.p"),
    )


# T5 calls the dropout of a stack at its embeddings and again behind its last norm: one module, two places.
T5 = Family(
    stacks=(
        t5_stack("encoder.block", mlp="layer.1", attentions=("layer.0.SelfAttention",), causal=False),
        t5_stack(
            "decoder.block",
            mlp="layer.2",
            attentions=("layer.0.SelfAttention", "layer.1.EncDecAttention"),
            causal=True,
        ),
    ),
    embedding=output("encoder.embed_tokens", rate="encoder.dropout.p")
    + output("decoder.embed_tokens", rate="decoder.dropout.p"),
    head=HEAD,
)

BART_BLOCK: Places = {
    "attention_weights": weights("self_attn", "encoder_attn", rate="dropout"),
    "attention_output": output("self_attn.out_proj", rate="dropout")
    + output("encoder_attn.out_proj", rate="dropout"),
    "mlp_hidden": before("fc2", rate="activation_dropout"),
    "mlp_output": output("fc2", rate="dropout"),
}

BART = Family(
    stacks=(
        Stack(
            path="encoder.layers",
            places=BART_BLOCK,
            causal=False,
            owner="encoder",
            skips="encoder.layerdrop",
        ),
        Stack(path="decoder.layers", places=BART_BLOCK, owner="decoder", skips="decoder.layerdrop"),
    ),
    embedding=output("encoder.layernorm_embedding", rate="encoder.dropout")
    + output("decoder.layernorm_embedding", rate="decoder.dropout"),
    head=HEAD,
)

BY_MODEL_TYPE: dict[str, Family] = {
    **dict.fromkeys(
        [
            "llama",
            "mistral",
            "qwen2",
            "qwen3",
            "gemma",
            "gemma2",
            "gemma3_text",
            "olmo2",
            "granite",
            "smollm3",
            "cohere",
            "nemotron",
            "glm",
        ],
        LLAMA,
    ),
    "phi": llama(
        embedding=child("embed_dropout"),
        attention_output=output("self_attn.dense", rate="resid_dropout.p"),
        mlp_hidden=before("mlp.fc2"),
        mlp_output=output("mlp", rate="resid_dropout.p"),
    ),
    "phi3": llama(attention_output=child("resid_attn_dropout"), mlp_output=child("resid_mlp_dropout")),
    "stablelm": llama(mlp_output=child("dropout")),
    "starcoder2": llama(
        embedding=output("embed_tokens", rate="embedding_dropout"),
        attention_output=output("self_attn.o_proj", rate="self_attn.residual_dropout"),
        mlp_hidden=before("mlp.c_proj"),
        mlp_output=output("mlp.c_proj", rate="mlp.residual_dropout"),
    ),
    # The experts see tokens without their sequence: layers that look at other tokens cannot act inside them.
    "mixtral": llama(mlp_hidden=output("mlp.experts.act_fn")),
    "gpt_oss": llama(mlp_hidden=(Place(path="mlp.experts", access="gate"),)),
    "gpt2": gpt2(weights("attn", "crossattention", rate="attn_dropout.p")),
    "gptj": gpt2(child("attn.attn_dropout")),
    "gpt_neox": GPT_NEOX,
    "opt": OPT,
    "bloom": BLOOM,
    "mpt": MPT,
    **dict.fromkeys(("bert", "roberta", "electra"), bert(weights("attention.self", rate="dropout.p"))),
    # Besides tokens it embeds distances, in every block.
    "deberta-v2": bert(
        child("attention.self.dropout"),
        embedding=(
            Place(path="attention.self.pos_dropout", access="rate", rate="attention.self.pos_dropout.p"),
        ),
    ),
    "distilbert": DISTILBERT,
    "albert": ALBERT,
    "modernbert": MODERNBERT,
    "t5": T5,
    "bart": BART,
}
