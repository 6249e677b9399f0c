package figures

import (
	"fmt"
	"html"
	"strings"
)

// Plot is rows of panels, each of which compares the same few contestants by one
// number.
type Plot struct {
	Title string
	Note  string // beneath the title
	Rows  [][]Panel
}

// Panel is one horizontal bar for each contestant.
type Panel struct {
	Title    string // what is compared, with its unit
	Subtitle string
	Bars     []Bar
	Goal     float64 // drawn as a line over all bars; 0: none
	GoalText string
}

// Bar is a median and the range that it was found in.
type Bar struct {
	Name             string
	Value, Low, High float64
	Text             string // the value as it is written
	Ours             bool   // stands out
}

// Measures of a plot, in pixels.
const (
	plotMargin  = 24
	plotHead    = 64 // title and note
	panelWidth  = 340
	panelGap    = 28
	panelHead   = 58 // title, subtitle, the goal's text
	barHeight   = 20
	barStep     = 30
	nameWidth   = 66
	numberWidth = 58
)

// SVG draws the plot on a light ground.
func (p Plot) SVG() string {
	columns, height := 1, plotHead
	for _, row := range p.Rows {
		columns = max(columns, len(row))
		height += rowHeight(row)
	}
	width := 2*plotMargin + columns*panelWidth + (columns-1)*panelGap
	height += plotMargin
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" role="img" aria-label="%s">`+"\n",
		width, height, width, height, html.EscapeString(p.Title))
	b.WriteString(plotStyle)
	fmt.Fprintf(&b, `<rect class="ground" width="%d" height="%d" rx="8"/>`+"\n", width, height)
	text(&b, "title", plotMargin, 34, p.Title)
	text(&b, "note", plotMargin, 54, p.Note)
	y := plotHead
	for _, row := range p.Rows {
		for i, panel := range row {
			panel.draw(&b, plotMargin+i*(panelWidth+panelGap), y)
		}
		y += rowHeight(row)
	}
	b.WriteString("</svg>\n")
	return b.String()
}

const plotStyle = `<style>
text { font-family: "Segoe UI", "Helvetica Neue", Helvetica, Arial, sans-serif; fill: #1f2933; font-size: 12px }
.ground { fill: #ffffff; stroke: #d9e2ec }
.title { font-size: 18px; font-weight: 600 }
.note, .subtitle { fill: #616e7c; font-size: 11px }
.panel { font-size: 14px; font-weight: 600 }
.name { text-anchor: end }
.axis { stroke: #9aa5b1 }
.theirs { fill: #bcccdc }
.ours { fill: #2680c2 }
.range { stroke: #243b53; stroke-width: 1.5 }
.goal { stroke: #c65d07; stroke-width: 1.5; stroke-dasharray: 5 3 }
.goaltext { fill: #c65d07; font-size: 11px }
</style>
`

func rowHeight(panels []Panel) int {
	bars := 0
	for _, p := range panels {
		bars = max(bars, len(p.Bars))
	}
	return panelHead + bars*barStep + panelGap
}

func text(b *strings.Builder, class string, x, y int, s string) {
	fmt.Fprintf(b, `<text class="%s" x="%d" y="%d">%s</text>`+"\n", class, x, y, html.EscapeString(s))
}

func line(b *strings.Builder, class string, x1, y1, x2, y2 int) {
	fmt.Fprintf(b, `<line class="%s" x1="%d" y1="%d" x2="%d" y2="%d"/>`+"\n", class, x1, y1, x2, y2)
}

// draw draws a panel whose upper left corner is at x, y. Bars begin at zero.
func (p Panel) draw(b *strings.Builder, x, y int) {
	text(b, "panel", x, y+16, p.Title)
	text(b, "subtitle", x, y+32, p.Subtitle)
	largest := p.Goal
	for _, bar := range p.Bars {
		largest = max(largest, bar.Value, bar.High)
	}
	zero, top := x+nameWidth, y+panelHead
	at := func(value float64) int {
		if largest <= 0 {
			return zero
		}
		return zero + int(value/largest*(panelWidth-nameWidth-numberWidth)+0.5)
	}
	for i, bar := range p.Bars {
		bar.draw(b, at, zero, top+i*barStep)
	}
	bottom := top + len(p.Bars)*barStep - (barStep - barHeight)
	line(b, "axis", zero, top-4, zero, bottom+4)
	if p.Goal > 0 {
		line(b, "goal", at(p.Goal), top-6, at(p.Goal), bottom+4)
		anchor := "start"
		if at(p.Goal) > x+panelWidth/2 {
			anchor = "end"
		}
		fmt.Fprintf(b, `<text class="goaltext" x="%d" y="%d" text-anchor="%s">%s</text>`+"\n",
			at(p.Goal), top-10, anchor, html.EscapeString(p.GoalText))
	}
}

func (bar Bar) draw(b *strings.Builder, at func(float64) int, zero, y int) {
	class, middle := "theirs", y+barHeight/2
	if bar.Ours {
		class = "ours"
	}
	text(b, "name", zero-8, middle+4, bar.Name)
	fmt.Fprintf(b, `<rect class="%s" x="%d" y="%d" width="%d" height="%d" rx="2"/>`+"\n", class, zero, y, at(bar.Value)-zero, barHeight)
	low, high := at(bar.Low), at(bar.High)
	if high > low {
		line(b, "range", low, middle, high, middle)
		line(b, "range", low, middle-4, low, middle+4)
		line(b, "range", high, middle-4, high, middle+4)
	}
	text(b, "value", max(at(bar.Value), high)+6, middle+4, bar.Text)
}
