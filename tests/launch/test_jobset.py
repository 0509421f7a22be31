import copy
import dataclasses
import json
import pathlib

import jsonschema
import pytest
import yaml

from launch import jobset
from launch.accelerators import SLICES, find_slice
from launch.job import Job

_SCHEMA = pathlib.Path(__file__).parents[1] / "fixtures" / "jobset_schema.json"
JOB = Job(
  name="base",
  slice=find_slice("v5p-256"),
  slices=2,
  image="us-docker.pkg.dev/p/lpm/lpm:1",
  command=("train", "--config=c.py:a", "--config.note=a 'b' \"c\": {d} # e", "--workdir=gs://b/w"),
  workdir="gs://bucket/w",
  project="p",
  zone="us-east5-a",
  cluster="c",
)
EVERYTHING = dict(
  capacity="spot", data="gs://data-bucket/some/folder", service_account="trainer", queue="lpm"
)


@pytest.fixture(scope="module")
def validator():
  return jsonschema.Draft202012Validator(json.loads(_SCHEMA.read_text()))


def manifest(job: Job) -> dict:
  return yaml.safe_load(jobset.render(job))


def slice_job(job: Job) -> dict:
  (replicated,) = manifest(job)["spec"]["replicatedJobs"]
  return replicated["template"]["spec"]


@pytest.mark.parametrize("changes", [{}, EVERYTHING], ids=["bare", "everything"])
@pytest.mark.parametrize("one", SLICES, ids=lambda s: s.accelerator_type)
def test_manifests_fit_the_schema_of_jobset(one, changes, validator):
  for slices in (1, 4):
    job = dataclasses.replace(JOB, slice=one, slices=slices, **changes)
    assert [f"{e.json_path}: {e.message}" for e in validator.iter_errors(manifest(job))] == []


@pytest.mark.parametrize(
  ("path", "value"),
  [
    ("spec.failurePolicy.maxRestart", 3),
    ("spec.failurePolicy.rules.0.action", "Restart"),
    ("spec.replicatedJobs.0.replicas", "2"),
    ("spec.replicatedJobs.0.template.spec.template.spec.terminationGracePeriod", 300),
    ("spec.replicatedJobs.0.template.spec.template.spec.containers.0.resource", {}),
    ("spec.replicatedJobs.0.template.spec.podFailurePolicy.rules.0.onPodConditions.0.type", 75),
    ("kind", "Job"),
  ],
)
def test_the_schema_refuses_what_the_api_server_refuses(path, value, validator):
  wrong = copy.deepcopy(manifest(dataclasses.replace(JOB, **EVERYTHING)))
  *parents, last = path.split(".")
  node = wrong
  for parent in parents:
    node = node[int(parent) if parent.isdigit() else parent]
  node[last] = value
  assert not validator.is_valid(wrong)


@pytest.mark.parametrize("one", SLICES, ids=lambda s: s.accelerator_type)
def test_the_pods_of_a_slice_ask_for_all_of_its_chips_and_no_more(one):
  job = slice_job(dataclasses.replace(JOB, slice=one))
  (container,) = job["template"]["spec"]["containers"]
  assert job["parallelism"] == job["completions"]
  chips = job["parallelism"] * container["resources"]["limits"]["google.com/tpu"]
  sides = job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
  assert chips == eval("*".join(sides)) == one.chips


def test_every_slice_is_a_job_on_a_node_pool_of_its_own():
  whole = manifest(JOB)
  annotations = whole["metadata"]["annotations"]
  assert annotations == {
    "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
  }
  assert whole["spec"]["replicatedJobs"][0]["replicas"] == 2


def test_the_command_arrives_word_for_word():
  (container,) = slice_job(JOB)["template"]["spec"]["containers"]
  assert container["args"] == list(JOB.command)


def restarts(exit_code: int, disrupted: bool) -> str:
  """What becomes of the job set when a pod ends: the rules of Kubernetes and JobSet, by hand.

  Kubernetes takes the first rule of a podFailurePolicy that matches; with backoffLimit 0 any failed
  pod fails its job. JobSet takes the first rule whose reasons hold, or counts a restart.
  """
  job, policy = slice_job(JOB), manifest(JOB)["spec"]["failurePolicy"]
  assert job["backoffLimit"] == 0 and job["template"]["spec"]["restartPolicy"] == "Never"
  reason = "BackoffLimitExceeded"
  for rule in job["podFailurePolicy"]["rules"]:
    codes, conditions = rule.get("onExitCodes", {}), rule.get("onPodConditions", [])
    by_code = (exit_code in codes.get("values", ())) == (codes.get("operator") == "In") and codes
    by_condition = disrupted and {"type": "DisruptionTarget", "status": "True"} in conditions
    if by_code or by_condition:
      assert rule["action"] == "FailJob"
      reason = "PodFailurePolicy"
      break
  for rule in policy["rules"]:
    if reason in rule["onJobFailureReasons"]:
      return rule["action"]
  return "RestartJobSet"


@pytest.mark.parametrize(
  ("exit_code", "disrupted", "action"),
  [
    (75, True, "RestartJobSetAndIgnoreMaxRestarts"),
    (75, False, "RestartJobSet"),
    (137, True, "RestartJobSetAndIgnoreMaxRestarts"),
    (1, False, "RestartJobSet"),
    (137, False, "RestartJobSet"),
  ],
)
def test_preemptions_restart_for_free_and_failures_are_counted(exit_code, disrupted, action):
  assert restarts(exit_code, disrupted) == action
  assert manifest(JOB)["spec"]["failurePolicy"]["maxRestarts"] == JOB.restarts


def test_the_data_bucket_is_mounted_where_the_job_says():
  spec = slice_job(dataclasses.replace(JOB, **EVERYTHING))["template"]["spec"]
  (volume,) = (v for v in spec["volumes"] if v["name"] == "data")
  attributes = volume["csi"]["volumeAttributes"]
  assert attributes["bucketName"] == "data-bucket"
  assert "only-dir=some/folder" in attributes["mountOptions"].split(",")
  assert all(v["name"] != "data" for v in slice_job(JOB)["template"]["spec"]["volumes"])
