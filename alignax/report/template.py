"""The page's template (jinja2, escaping on): no script, no external file, light and dark, narrow and wide."""

STYLE = """
:root { color-scheme: light dark; --page: #fcfcfa; --ink: #1c2024; --soft: #5c646c; --line: #d9dcdf; --card: #f3f4f2;
  --up: #1a7f4e; --down: #b8421b; }
@media (prefers-color-scheme: dark) { :root { --page: #15181b; --ink: #e4e6e8; --soft: #a0a8b0; --line: #353b41;
  --card: #1e2226; --up: #55c08a; --down: #ee8a5c; } }
body { margin: 0 auto; max-width: 1080px; padding: 2rem 1.2rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p, ul { margin: .4rem 0; } ul { padding-left: 1.2rem; }
.soft, figcaption { color: var(--soft); font-size: .88rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .9rem .35rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
td:first-child { white-space: nowrap; }
th { color: var(--soft); font-weight: 500; font-size: .88rem; white-space: nowrap; }
.numbers td:not(:first-child), .numbers th:not(:first-child) {
  text-align: right; white-space: nowrap; padding: .35rem .6rem; }
.chip { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .45em; }
.readings { list-style: none; padding: 0; } .readings li { padding-left: 1.5rem; text-indent: -1.5rem; }
.readings b { display: inline-block; width: 1.5rem; text-indent: 0; }
.up { color: var(--up); } .down { color: var(--down); }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 1.6rem; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); gap: .8rem; }
figure { margin: 0; max-width: 620px; } svg { width: 100%; height: auto;  display: block; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif !important; }
.sample { margin: 1rem 0; padding: .8rem 1rem; background: var(--card); border-radius: 8px; }
.prompt { font-weight: 600; } .tag { color: var(--soft); font-size: .82rem; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 230px), 1fr)); gap: 1rem;
  margin-top: .6rem; }
.answer { border-top: 3px solid; padding-top: .4rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; max-height: 24rem; overflow-y: auto; }
.tree, .tree ul { list-style: none; padding-left: 1.1rem; border-left: 2px solid var(--line); margin-left: .3rem; }
.tree li { margin: .5rem 0; }
code, pre { font: .82rem/1.45 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { background: var(--card); padding: .8rem; border-radius: 8px; overflow-x: auto; }
summary { cursor: pointer; padding: .2rem 0; }
"""

PAGE = (
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{{ name }}: alignax report</title>
<style>"""
    + STYLE
    + """</style>
</head>
<body>
{% macro chip(policy) %}
<span class="chip" style="background: {{ colours.get(policy, 'currentColor') }}"></span>
{%- endmacro %}
{% macro family(node) %}
<li><strong>{{ node.stage.name }}</strong> <span class="soft">{{ node.stage.kind }}{% if node.stage.step is not none %},
step {{ node.stage.step }}{% endif %}</span> <code>{{ node.content_hash[:12] }}</code>
{% for parent in node.parents %}
<div class="soft">{{ parent.role }} from {{ parent.name }} <code>{{ parent.content_hash[:12] }}</code>
{% if parent.state == "changed" %}<span class="down">changed since: this is no longer what it was made from</span>
{% elif parent.state == "elsewhere" %}(in another folder){% endif %}</div>
{% endfor %}
{% if node.children %}<ul>{% for child in node.children %}{{ family(child) }}{% endfor %}</ul>{% endif %}
</li>
{% endmacro %}
<h1>{{ name }}</h1>
<p class="soft">{{ run.stages | map(attribute="name") | join(", ") }}
{%- if wall is not none %}; {{ wall | duration }}{% endif %}{% if version %}; alignax {{ version }}{% endif %}</p>

<h2>{{ "What came out" if run.policies else "Last values" }}</h2>
<div class="wide"><table{% if run.policies %} class="numbers"{% endif %}>
<thead><tr>{% for cell in header %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for policy, row in rows %}
<tr>{% for cell in row %}<td>{% if loop.first and policy %}{{ chip(policy) }}{% endif %}{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% if reward_model %}<p>{{ reward_model[0] | upper }}{{ reward_model[1:] }}.</p>{% endif %}
{% if run.policies %}
<p class="soft">Brackets are 95% intervals. Gold is the known true reward, used here to judge; proxy is the learned
reward model's score, which PPO maximises; KL is from SFT; win rate is against SFT; length is in tokens.</p>
{% endif %}
{% if readings %}
<ul class="readings">
{% for reading in readings %}
<li><b class="{{ reading.mark }}">{{ marks[reading.mark] }}</b>{{ reading.text }}</li>
{% endfor %}
</ul>
<p class="soft">Each policy is one training run: the intervals do not cover what another seed would give.</p>
{% endif %}
{% if watched %}
<h3>Alarms</h3>
<ul class="readings">
{% for stage in watched %}
{% for alarm in stage.alarms %}
<li><b class="down">▼</b>{{ stage.name }}, step {{ alarm.step }}: {{ alarm.alarm }}: {{ alarm.message }}.</li>
{% else %}
<li><b>·</b>{{ stage.name }}: none of {{ stage.config.alarms | list | join(", ") }}.</li>
{% endfor %}
{% endfor %}
</ul>
{% endif %}
{% if run.notes %}
<h3>What this page cannot show</h3>
<ul class="soft">{% for note in run.notes %}<li>{{ note }}</li>{% endfor %}</ul>
{% endif %}

{% if pictures %}
<h2>Pictures</h2>
<div class="pictures">
{% for title, caption, picture in pictures %}
<figure><h3>{{ title }}</h3>{{ picture }}<figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
</div>
{% endif %}

{% if samples %}
<h2>Samples{% if run.evaluated and run.evaluated.samples %}, before and after{% endif %}</h2>
{% if run.evaluated and run.evaluated.samples %}
<p class="soft">For every policy the prompt where it gained most over SFT and the one where it fared worst, whatever
they show; then prompts in file order, one family after another, not selected by score.</p>
{% endif %}
{% for sample in samples %}
<div class="sample">
<div class="tag">{{ ([sample.family] + sample.why) | select | join(" · ") }}</div>
<div class="prompt text" dir="auto">{{ sample.prompt }}</div>
<div class="answers">
{% for answer in sample.answers %}
<div class="answer" style="border-color: {{ colours.get(answer.policy, 'currentColor') }}">
<div><strong>{{ answer.policy | label }}</strong> <span class="soft">
{%- if answer.gold is not none %}gold {{ answer.gold | number }}{% endif %}
{%- if answer.change is not none %} (<span class="{{ 'up' if answer.change > 0 else 'down' }}">
{{- answer.change | number(sign=True) }}</span>){% endif %}
{%- if answer.proxy is not none %}, proxy {{ answer.proxy | number }}{% endif %}</span></div>
{% if answer.completion %}
<div class="text" dir="auto">{{ answer.completion }}</div>
{% else %}
<div><em class="soft">(empty)</em></div>
{% endif %}
<div class="tag">{{ answer.parts | listing("{} {:+.2f}") }}</div>
</div>
{% endfor %}
</div>
</div>
{% endfor %}
{% endif %}

{% if curves %}
<h2>Learning curves</h2>
<p class="soft">Lines are training, points are evaluations on held-out data.</p>
{% for stage, pictures in curves %}
<h3>{{ stage.name }}</h3>
<div class="curves">{% for picture in pictures %}<figure>{{ picture }}</figure>{% endfor %}</div>
{% endfor %}
{% endif %}

<h2>Stages</h2>
<div class="wide"><table>
<thead><tr><th>stage</th><th>state</th><th>steps</th><th>wall time</th><th>last values</th></tr></thead>
<tbody>
{% for stage in run.stages %}
<tr><td>{{ stage.name }}</td><td>{{ state(stage) }}</td><td>{{ "-" if stage.step is none else stage.step }}</td>
<td>{{ stage.wall_seconds | duration }}</td>
<td class="soft">{{ final_values(stage) | listing("{} {:.4g}") }}</td></tr>
{% endfor %}
</tbody></table></div>

{% if tree %}
<h2>Family tree of the checkpoints</h2>
<ul class="tree">{% for node in tree %}{{ family(node) }}{% endfor %}</ul>
{% endif %}

<h2>Configs</h2>
{% for stage in run.stages %}
{% if stage.config %}
<details><summary>{{ stage.name }}</summary><pre>{{ stage.config | pretty }}</pre></details>
{% else %}
<p class="soft">{{ stage.name }}: no config.json.</p>
{% endif %}
{% endfor %}
</body>
</html>
"""
)
