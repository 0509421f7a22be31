"""`supervise` against a Cloud TPU API and a bucket made of a few lines."""

import dataclasses
import subprocess

import pytest
from test_jobset import JOB

from launch import tpu_vm
from launch.accelerators import find_slice

_JOB = dataclasses.replace(JOB, slice=find_slice("v5p-16"), slices=1, capacity="spot")  # 2 hosts


class Cloud:
  """Queued resources that pass through given states, a look each.

  Args:
    lives: for every request in turn, its states, or (state, reports) where hosts report.
  """

  def __init__(self, *lives, reports=(), there=False):
    self.lives = list(lives)
    self.reports = list(reports)
    self.states = self.lives.pop(0) if there else None
    self.created, self.deleted, self.seconds, self.unreachable = 0, 0, 0.0, 0

  def run(self, command):
    code, out, err = self.answer(command)
    return subprocess.CompletedProcess(command, code, out, err)

  def answer(self, command):
    verb = command[4] if command[2] == "tpus" else command[2]
    if verb == "create":
      assert self.states is None, "a second queued resource of the same name"
      assert not self.reports, "reports of an earlier run are still there"
      self.states, self.created = list(self.lives.pop(0)), self.created + 1
    elif verb == "delete":
      assert "--force" in command
      self.states, self.deleted = None, self.deleted + 1
    elif verb == "describe":
      if self.unreachable:
        self.unreachable -= 1
        return 1, "", "ERROR: connection reset"
      if self.states is None:
        return 1, "", "ERROR: (gcloud...) NOT_FOUND: Resource was not found"
      if "--format=yaml(state)" in command:
        return 0, "state:\n  failedData: quota exceeded\n", ""
      state = self.states[0]
      if len(self.states) > 1:
        self.states.pop(0)
      if isinstance(state, tuple):
        state, self.reports = state[0], list(state[1])
      return 0, f"{state}\n", ""
    elif verb == "cat":
      return (0, "".join(f"{line}\n" for line in self.reports), "") if self.reports else (1, "", "")
    elif verb == "rm":
      self.reports = []
    return 0, "", ""

  def sleep(self, seconds):
    self.seconds += seconds
    assert self.seconds < 1e5, "waits for ever"

  def supervise(self):
    said = []
    tpu_vm.supervise(
      _JOB, "s.sh", run=self.run, sleep=self.sleep, clock=lambda: self.seconds, say=said.append
    )
    return "\n".join(said)


_DONE = ("ACTIVE", ["a 0", "b 0"])


def test_a_run_is_followed_from_the_queue_to_the_end_and_handed_back():
  cloud = Cloud(["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", _DONE])
  said = cloud.supervise()
  assert (cloud.created, cloud.deleted) == (1, 1)
  assert "WAITING_FOR_RESOURCES" in said and "ACTIVE" in said


def test_preempted_slices_are_asked_for_again_however_often():
  life = ["PROVISIONING", "ACTIVE", "SUSPENDING", "SUSPENDED"]
  cloud = Cloud(*[life] * 30, ["ACTIVE", _DONE])
  cloud.supervise()
  assert (cloud.created, cloud.deleted) == (31, 31)


def test_reports_of_preempted_hosts_do_not_end_the_new_run():
  cloud = Cloud(["ACTIVE", ("SUSPENDED", ["a 0"])], ["ACTIVE", _DONE])
  cloud.supervise()
  assert cloud.created == 2


def test_reports_of_an_earlier_run_are_removed_first():
  cloud = Cloud(["ACTIVE", _DONE], reports=["a 1", "b 1"])
  cloud.supervise()
  assert (cloud.created, cloud.deleted) == (1, 1)


def test_a_run_that_is_there_already_is_followed_not_doubled():
  cloud = Cloud(["ACTIVE", _DONE], there=True)
  cloud.supervise()
  assert (cloud.created, cloud.deleted) == (0, 1)


def test_a_run_that_ended_unwatched_is_handed_back():
  cloud = Cloud(["ACTIVE"], reports=["a 0", "b 0"], there=True)
  cloud.supervise()
  assert (cloud.created, cloud.deleted) == (0, 1)


def test_a_failed_host_is_named_after_handing_back():
  cloud = Cloud(["ACTIVE", ("ACTIVE", ["a 0", "b 134"])])
  with pytest.raises(tpu_vm.LaunchError, match="b failed; see gcloud logging"):
    cloud.supervise()
  assert cloud.deleted == 1


def test_a_host_that_never_reports_does_not_keep_the_slices():
  cloud = Cloud(["ACTIVE", ("ACTIVE", ["a 0"])])
  cloud.supervise()
  assert cloud.deleted == 1
  assert 600 < cloud.seconds < 1200


def test_a_refused_request_is_not_repeated():
  cloud = Cloud(["WAITING_FOR_RESOURCES", "FAILED"])
  with pytest.raises(tpu_vm.LaunchError, match="quota exceeded"):
    cloud.supervise()
  assert cloud.created == 1


def test_failures_of_running_slices_are_counted():
  cloud = Cloud(*[["ACTIVE", "FAILED"]] * (_JOB.restarts + 5))
  with pytest.raises(tpu_vm.LaunchError, match="failed"):
    cloud.supervise()
  assert cloud.created == _JOB.restarts + 1


def test_a_deleted_queued_resource_is_an_error_and_is_not_made_again():
  cloud = Cloud(["ACTIVE"], there=True)
  cloud.states = ["ACTIVE"]
  real = cloud.sleep

  def sleep(seconds):
    real(seconds)
    cloud.states = None

  cloud.sleep = sleep
  with pytest.raises(tpu_vm.LaunchError, match="was deleted"):
    cloud.supervise()
  assert cloud.created == 0


def test_an_api_that_cannot_be_reached_for_a_while_is_waited_for():
  cloud = Cloud(["ACTIVE", "ACTIVE", _DONE], there=True)
  cloud.unreachable = 5
  cloud.supervise()
  assert (cloud.created, cloud.deleted) == (0, 1)


def test_an_api_that_stays_unreachable_is_an_error_not_a_second_request():
  cloud = Cloud(["ACTIVE"], there=True)
  cloud.unreachable = 1000
  with pytest.raises(tpu_vm.LaunchError, match="connection reset"):
    cloud.supervise()
  assert (cloud.created, cloud.deleted) == (0, 0)


def test_a_bucket_that_is_not_there_is_named_before_any_request():
  cloud = Cloud(["ACTIVE"])
  answer = cloud.answer
  cloud.answer = lambda command: (
    (1, "", "404: bucket not found") if command[2] == "ls" else answer(command)
  )
  with pytest.raises(tpu_vm.LaunchError, match="gs://bucket: exit code 1\n404"):
    cloud.supervise()
  assert cloud.created == 0
