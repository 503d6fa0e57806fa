"""A refund that is asked for in Slack and approved there, by a button; nobody's answer gets lost, or counts twice.

    export SLACK_BOT_TOKEN=xoxb-... SLACK_APP_TOKEN=xapp-...
    refold dev examples/approval_in_slack/refunds.py

Then, in Slack:  /refund o-1 99.00
"""

import os
from datetime import timedelta

from slack_bolt import App as Bolt
from slack_bolt import Say
from slack_sdk import WebClient

import refold
from refold import App
from refold.connectors import slack

app = App("refunds")
client = WebClient(
    token=os.environ["SLACK_BOT_TOKEN"], base_url=os.environ.get("SLACK_API_URL", WebClient.BASE_URL)
)
bolt = Bolt(client=client, token_verification_enabled=False)  # it starts though Slack may be away
team = slack.mount(app, bolt, app_token=os.environ["SLACK_APP_TOKEN"])


@refold.step(retries=5)
def pay_out(order: str, amount: str) -> str:
    return (
        f"paid {amount} for {order}"  # bank.transfer(..., idempotency_key=refold.step_info().idempotency_key)
    )


@team.command("/refund", ack=lambda command: f"Asking whether {command.text or 'nothing'} may be paid back.")
@app.workflow
def refund(command: slack.Command) -> str:
    order, _, amount = command.text.partition(" ")
    question = f"<@{command.user}> wants to pay back {amount} for {order}."
    try:
        answer = team.ask("#refunds", question, {"Approve": True, "Reject": False}, timeout=timedelta(days=3))
    except refold.TimedOut:
        team.respond(command, f"Nobody has decided about {order}.")
        return "nobody decided"
    if not answer.value:
        return f"refused by {answer.user}"
    paid = pay_out(order, amount)
    team.say(command, f"{paid}, approved by <@{answer.user}>")
    return paid


@bolt.event("app_mention")
def hello(say: Say) -> None:
    say("Type `/refund ORDER AMOUNT`.")
