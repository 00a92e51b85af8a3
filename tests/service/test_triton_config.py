"""What becomes of each key of Triton's configuration: taken, warned about, or refused; never passed over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from service.datatypes import DATATYPES
from service.errors import ModelRejected
from service.repository import ModelConfig
from service.triton_config import translate
from service.triton_keys import KEYS

CPU = ("CPUExecutionProvider",)
CUDA = ("CUDAExecutionProvider", "CPUExecutionProvider")

TENSORS = """
input { name: "x" data_type: TYPE_FP32 dims: [ 2 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 3 ] }
"""


def read(text: str, providers: Sequence[str] = CPU) -> ModelConfig:
    """The configuration that the service is given."""
    return ModelConfig.model_validate(translate(text.encode(), "m", providers).values)


def warnings(text: str, providers: Sequence[str] = CPU) -> tuple[str, ...]:
    return translate(text.encode(), "m", providers).warnings


def test_a_whole_configuration_as_triton_s_documentation_shows_it() -> None:
    config = read(
        """
        name: "resnet"
        platform: "onnxruntime_onnx"
        backend: "onnxruntime"
        default_model_filename: "resnet50.onnx"
        max_batch_size: 8
        input [
          { name: "image" data_type: TYPE_UINT8 dims: [ 3, 224, -1 ] },
          { name: "text" data_type: TYPE_STRING dims: [ 1 ] }
        ]
        output [ { name: "scores" data_type: TYPE_FP32 dims: [ 1000 ] label_filename: "labels.txt" } ]
        version_policy: { latest { num_versions: 2 } }
        instance_group [ { count: 2 kind: KIND_CPU }, { kind: KIND_AUTO } ]
        dynamic_batching {
          max_queue_delay_microseconds: 100
          priority_levels: 3
          default_priority_level: 2
          default_queue_policy {
            timeout_action: REJECT
            default_timeout_microseconds: 50000
            allow_timeout_override: false
            max_queue_size: 16
          }
        }
        """
    )
    assert config.model_dump(exclude_unset=True) == {
        "name": "resnet",
        "default_model_filename": "resnet50.onnx",
        "max_batch_size": 8,
        "inputs": (
            {"name": "image", "datatype": "UINT8", "shape": (-1, 3, 224, -1)},
            {"name": "text", "datatype": "BYTES", "shape": (-1, 1)},
        ),
        "outputs": ({"name": "scores", "datatype": "FP32", "shape": (-1, 1000), "labels": "labels.txt"},),
        "scheduler": {
            "max_queue_delay_us": 100,
            "priority_levels": 3,
            "default_priority": 2,
            "default_timeout_us": 50000,
            "allow_timeout_override": False,
            "max_queue_size": 16,
            "instances": 3,
        },
        "version_policy": {"latest": 2},
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", {"name": "m"}, id="nothing-said"),
        pytest.param('name: "" platform: "" backend: ""', {"name": "m"}, id="empty-strings-are-nothing-said"),
        pytest.param("max_batch_size: 4", {"name": "m", "max_batch_size": 4}, id="batch-size-alone"),
        pytest.param("max_batch_size: 0", {"name": "m", "max_batch_size": 0}, id="no-batching"),
        pytest.param("version_policy { all {} }", {"name": "m", "version_policy": {"all": True}}, id="all-versions"),
        pytest.param("version_policy { specific { versions: [3, 1] } }",
                     {"name": "m", "version_policy": {"specific": (3, 1)}}, id="specific-versions"),
        pytest.param("version_policy { latest {} }", {"name": "m", "version_policy": {"latest": 1}}, id="latest"),
        pytest.param("version_policy {}", {"name": "m", "version_policy": {"latest": 1}}, id="no-choice"),
        pytest.param("dynamic_batching {}", {"name": "m"}, id="default-batching"),
        pytest.param("optimization {}", {"name": "m"}, id="default-optimization"),
        pytest.param("instance_group { kind: 2 }", {"name": "m", "scheduler": {"instances": 1}}, id="enum-by-number"),
    ],
)  # fmt: skip
def test_what_the_file_does_not_say_stays_unsaid(text: str, expected: Mapping[str, Any]) -> None:
    assert read(text).model_dump(exclude_unset=True) == expected
    assert warnings(text) == ()


@pytest.mark.parametrize(
    ("batching", "max_batch_size", "shape"),
    [
        pytest.param("max_batch_size: 8", 8, (-1, 2), id="rows-are-not-in-dims"),
        pytest.param("max_batch_size: 1", 1, (-1, 2), id="one-row"),
        pytest.param("max_batch_size: 0", 0, (2,), id="no-rows"),
        pytest.param("", 0, (2,), id="absent-is-0-where-tensors-are-described"),
    ],
)
def test_dims_exclude_the_rows_of_a_batch(batching: str, max_batch_size: int, shape: tuple[int, ...]) -> None:
    """model_configuration.md, "Inputs and Outputs"."""
    config = read(batching + TENSORS)
    assert (config.max_batch_size, config.inputs[0].shape) == (max_batch_size, shape)


@pytest.mark.parametrize("datatype", [name for name in DATATYPES if name != "BYTES"])
def test_datatypes_lose_their_prefix(datatype: str) -> None:
    tensor = f'input {{ name: "x" data_type: TYPE_{datatype} dims: 1 }}'
    assert read(tensor).inputs[0].datatype == datatype


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param(
            "dynamic_batching {\n preferred_batch_size: [4, 8] }",
            "line 2, column 2: dynamic_batching.preferred_batch_size is not used: batch sizes follow the latencies",
            id="preferred-sizes",
        ),
        pytest.param("dynamic_batching { preserve_ordering: true }", "preserve_ordering true is not used", id="order"),
        pytest.param(
            "dynamic_batching { default_queue_policy { max_queue_size: 0 } }", "max_queue_size 0", id="no-limit"
        ),
        pytest.param(
            'input { name: "x" data_type: TYPE_FP32 dims: [3, 8, 8] format: FORMAT_NCHW }',
            "input.format FORMAT_NCHW is not used: dims state the layout", id="format",
        ),
        pytest.param(
            'parameters { key: "intra_op_thread_count" value: { string_value: "4" } }',
            "parameters 'intra_op_thread_count' is not used", id="parameter",
        ),
        pytest.param("optimization { graph { level: 1 } }", "optimization.graph (level) is not used", id="graph-level"),
        pytest.param(
            'optimization { execution_accelerators { gpu_execution_accelerator: [ { name: "tensorrt" } ] } }',
            "optimization.execution_accelerators (gpu_execution_accelerator.name) is not used: --providers",
            id="accelerator",
        ),
        pytest.param("optimization { cuda { graphs: true } }", "optimization.cuda (graphs) is not used", id="cuda"),
        pytest.param('model_warmup [ { name: "a" } ]', "model_warmup (name) is not used", id="warm-up"),
        pytest.param("response_cache { enable: true }", "response_cache.enable true is not used", id="cache"),
        pytest.param('metric_tags { key: "team" value: "a" }', "metric_tags 'team' is not used", id="metric-tags"),
        pytest.param(
            'instance_group { rate_limiter { priority: 2 resources [ { name: "R" }, { nmae: "S" } ] } }',
            "instance_group.rate_limiter (priority, resources.name, resources.nmae) is not used", id="misspelt-within",
        ),
        pytest.param(
            'parameters { key: "a" value { string_value: "b" strng: "c" } }', "parameters 'a' (value.strng) is not",
            id="more-than-an-entry-has",
        ),
        pytest.param(
            "instance_group { gpus: [0] }", "instance_group.gpus [0] is not used: models run where --providers says, "
            "CPUExecutionProvider", id="gpu-without-a-provider",
        ),
        pytest.param("instance_group { count: 0 }", "instance_group.count 0 is not used", id="no-count"),
    ],
)  # fmt: skip
def test_what_changes_no_answer_is_warned_about_by_name(text: str, told: str) -> None:
    (warning,) = warnings(text)
    assert told in warning
    read(text)


def test_a_warning_is_given_once_for_all_tensors_and_once_for_each_parameter() -> None:
    two = 'parameters [ { key: "a" }, { key: "b" } ]'
    assert len(warnings(two)) == 2
    tensor = 'input { name: "x" data_type: TYPE_FP32 dims: [3, 8, 8] format: FORMAT_NCHW }'
    assert len(warnings(tensor + tensor)) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param('platform: "tensorrt_plan"', r"column 1: platform 'tensorrt_plan' is not served", id="plan"),
        pytest.param('platform: "ensemble"', r"platform 'ensemble'", id="ensemble-platform"),
        pytest.param('backend: "python"', r"backend 'python' is not served: only ONNX", id="python"),
        pytest.param('runtime: "model.py"', r"runtime 'model.py'", id="runtime"),
        pytest.param("instance_group [ {}, {\n count: -1 } ]", r"line 2, .* is -1; expected 1 or more", id="instances"),
        pytest.param('input { name: "x" allow_ragged_batch: true }', r"allow_ragged_batch true", id="ragged"),
        pytest.param('input { name: "x" optional: true }', r"input.optional true is not served", id="optional"),
        pytest.param('input { name: "x" is_shape_tensor: 1 }', r"input.is_shape_tensor 1", id="shape-tensor"),
        pytest.param("batch_input { kind: BATCH_ITEM_SHAPE }", r"batch_input is not served", id="batch-input"),
        pytest.param("sequence_batching { }", r"sequence_batching is not served", id="sequences"),
        pytest.param("ensemble_scheduling { step [ { } ] }", r"ensemble_scheduling is not served", id="ensemble"),
        pytest.param("model_transaction_policy { decoupled: true }", r"decoupled true is not served", id="decoupled"),
        pytest.param('model_operations { op_library_filename: "a.so" }', r"model_operations", id="custom-operators"),
        pytest.param('model_repository_agents { agents { name: "checksum" } }', r"repository_agents", id="agents"),
        pytest.param('cc_model_filenames { key: "7.5" value: "a.plan" }', r"cc_model_filenames '7.5'", id="cc"),
        pytest.param("dynamic_batching { priority_queue_policy { key: 1 } }", r"queue_policy 1", id="by-level"),
        pytest.param(
            "dynamic_batching { default_queue_policy { timeout_action: DELAY } }", r"timeout_action DELAY", id="delay"
        ),
        pytest.param("instance_group { passive: true }", r"instance_group.passive true", id="passive"),
        pytest.param("instance_group { gpus: [1] }", r"instance_group.gpus is \[1\]", id="another-gpu"),
        pytest.param("version_policy { all {} latest {} }", r"has all and latest; choose one", id="two-policies"),
        pytest.param("version_policy { specific {} }", r"version_policy.specific lists no versions", id="no-version"),
        pytest.param("\n max_batchsize: 1", r"line 2, column 2: max_batchsize is no key of Triton's", id="misspelt"),
        pytest.param("dynamic_batching { x: 1 }", r"dynamic_batching.x is no key of Triton's", id="misspelt-inside"),
        pytest.param("name: 'a' name: 'b'", r"name is given more than once", id="twice"),
        pytest.param("max_batch_size: [1]", r"max_batch_size is given more than once", id="list-for-one-value"),
        pytest.param("max_batch_size: '8'", r"max_batch_size is '8'; expected a whole number", id="string-for-number"),
        pytest.param("max_batch_size: 2147483648", r"expected a whole number from -2147483648 to", id="over-int32"),
        pytest.param("max_batch_size: 1.0", r"max_batch_size is 1.0; expected a whole number", id="float-for-integer"),
        pytest.param("name: resnet", r"name is resnet; expected a string in quotes", id="name-without-quotes"),
        pytest.param("response_cache { enable: yes }", r"is yes; expected true or false", id="not-a-bool"),
        pytest.param("input: 3", r"input is 3; expected \{ \.\.\. \}", id="not-a-message"),
        pytest.param("max_batch_size { }", r"max_batch_size is a message; expected a whole", id="message-for-number"),
        pytest.param('input { name: "x" data_type: FP32 }', r"is FP32; expected one of .*TYPE_FP32", id="type"),
        pytest.param('input { name: "x" data_type: TYPE_FP32 }', r"input 'x' lacks dims; leave out all", id="no-dims"),
        pytest.param('output { name: "y" label_filename: "l" }', r"output 'y' lacks data_type, dims", id="labels-only"),
        pytest.param("name:", r"line 1, column 6: the file ends, expected a value", id="syntax"),
    ],
)  # fmt: skip
def test_what_would_change_answers_is_refused_by_name_and_place(text: str, told: str) -> None:
    with pytest.raises(ModelRejected, match=told) as caught:
        translate(text.encode(), "m", CPU)
    assert str(caught.value).startswith("line ")


@pytest.mark.parametrize(
    "text",
    [
        "model_transaction_policy { decoupled: false }",
        "response_cache { enable: false }",
        "dynamic_batching { preserve_ordering: False }",
        "instance_group { passive: f }",
        'input { name: "x" data_type: TYPE_FP32 dims: 1 optional: 0 format: FORMAT_NONE allow_ragged_batch: false }',
        'runtime: "libtriton_onnxruntime.so"',
    ],
)
def test_a_default_that_is_spelled_out_is_nothing_to_warn_about(text: str) -> None:
    read(text)
    assert warnings(text) == ()


def test_a_gpu_is_believed_only_where_one_is_asked_for() -> None:
    group = "instance_group { kind: KIND_GPU count: 2 gpus: [0] }"
    assert read(group, CUDA).scheduler.instances == 2
    assert warnings(group, CUDA) == ()
    with pytest.raises(
        ModelRejected,
        match=r"kind is KIND_GPU, but --providers is CPUExecutionProvider: .* write KIND_CPU, or KIND_AUTO",
    ):
        read(group)


def test_a_cpu_that_is_asked_for_beside_a_gpu_provider_is_warned_about() -> None:
    (warning,) = warnings("instance_group { kind: KIND_CPU }", CUDA)
    assert "KIND_CPU is not used: models run where --providers says, CUDAExecutionProvider,CPU" in warning


@pytest.mark.parametrize(
    ("location", "spelled"),
    [
        pytest.param((), "", id="the-whole-file"),
        pytest.param(("max_batch_size",), "line 2, column 1: max_batch_size", id="same-name"),
        pytest.param(("inputs", 1, "shape", 0), "line 4, column 34: input.dims", id="in-the-second-input"),
        pytest.param(("inputs", 1, "shape", 1), "line 4, column 34: input.dims", id="behind-the-rows"),
        pytest.param(("inputs", 0), "line 3, column 1: input", id="a-whole-input"),
        pytest.param(("outputs", 0, "datatype"), "line 5, column 10: output.data_type", id="output"),
        pytest.param(("scheduler",), "line 6, column 1: dynamic_batching", id="group"),
        pytest.param(("scheduler", "max_queue_size"), "line 7, column 26: dynamic_batching.default_queue_policy.max_"
                     "queue_size", id="deep"),
        pytest.param(("scheduler", "instances"), "line 8, column 18: instance_group.count", id="sum"),
        pytest.param(("version_policy", "specific", 1), "line 9, column 29: version_policy.specific.versions", id="at"),
        pytest.param(("name",), "line 1, column 1: name", id="what-the-file-does-not-say"),
    ],
)  # fmt: skip
def test_a_place_is_told_as_the_file_has_it(location: tuple[str | int, ...], spelled: str) -> None:
    text = """
max_batch_size: 4
input [ { name: "a" data_type: TYPE_FP32 dims: [2] },
{ name: "b" data_type: TYPE_FP32 dims: [-2] } ]
output { data_type: TYPE_FP32 name: "c" dims: 1 }
dynamic_batching {
  default_queue_policy { max_queue_size: 1 } }
instance_group { count: 70 }
version_policy { specific { versions: [1, 0] } }
"""
    assert translate(text.encode(), "m", CPU).spell(location) == spelled


def test_a_tensor_may_have_another_shape_in_the_model_than_on_the_wire() -> None:
    """Triton's quick start, densenet_onnx."""
    text = (
        'input { name: "x" data_type: TYPE_FP32 dims: [3, 224, 224] reshape { shape: [1, 3, 224, 224] } }'
        'output { name: "y" data_type: TYPE_FP32 dims: [1] reshape { shape: [] } }'
    )
    alone, batched = read("max_batch_size: 0 " + text), read("max_batch_size: 2 " + text)
    assert (alone.inputs[0].shape, alone.inputs[0].reshape) == ((3, 224, 224), (1, 3, 224, 224))
    assert (alone.outputs[0].shape, alone.outputs[0].reshape) == ((1,), ())
    assert (batched.inputs[0].reshape, batched.outputs[0].reshape) == ((-1, 1, 3, 224, 224), (-1,))
    assert read(TENSORS).inputs[0].reshape is None


def test_a_row_that_is_one_number_has_no_dims() -> None:
    tensor = read('max_batch_size: 4 input { name: "x" data_type: TYPE_FP32 dims: [ ] }').inputs[0]
    assert tensor.shape == (-1,)


# The fields of the messages that are looked into, from model_config.proto.
SCHEMA: Mapping[str, str] = {
    "": "name platform backend runtime version_policy max_batch_size input output batch_input batch_output "
    "optimization dynamic_batching sequence_batching ensemble_scheduling instance_group default_model_filename "
    "cc_model_filenames metric_tags parameters model_warmup model_operations model_transaction_policy "
    "model_repository_agents response_cache model_metrics",
    "input.": "name data_type format dims reshape is_shape_tensor allow_ragged_batch optional is_non_linear_format_io",
    "output.": "name data_type dims reshape label_filename is_shape_tensor is_non_linear_format_io",
    "input.reshape.": "shape",
    "output.reshape.": "shape",
    "version_policy.": "latest all specific",
    "version_policy.latest.": "num_versions",
    "version_policy.specific.": "versions",
    "optimization.": "graph priority cuda execution_accelerators input_pinned_memory output_pinned_memory "
    "gather_kernel_buffer_threshold eager_batching",
    "dynamic_batching.": "preferred_batch_size max_queue_delay_microseconds preserve_ordering priority_levels "
    "default_priority_level default_queue_policy priority_queue_policy",
    "dynamic_batching.default_queue_policy.": "timeout_action default_timeout_microseconds allow_timeout_override "
    "max_queue_size",
    "instance_group.": "name kind count rate_limiter gpus secondary_devices profile passive host_policy",
    "model_transaction_policy.": "decoupled",
    "response_cache.": "enable",
}


def test_every_field_of_triton_s_schema_has_a_row_and_no_other() -> None:
    fields = {prefix + name for prefix, names in SCHEMA.items() for name in names.split()}
    assert set(KEYS) == fields


def test_every_row_that_is_not_taken_says_why() -> None:
    for path, key in KEYS.items():
        assert bool(key.why) == (key.verdict != "taken"), path
        assert key.verdict != "taken" or key.type, path
